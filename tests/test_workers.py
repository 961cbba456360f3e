"""Generation on many engines: the same bytes for any number of them, in any order, whichever of them die."""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import forked
from small_run import give_weights, start, workers_of

from sector.engine.config import Filter
from sector.engine.errors import InputError, WorkersDied
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.language.rows import cat
from sector.engine.models.checkpoint import checkpoint_files, load_checkpoint
from sector.engine.models.sector import SectorForCausalLM, new_model
from sector.engine.policy import cluster, worker
from sector.engine.policy.deaths import Deaths
from sector.engine.policy.generate import Assignment, generate
from sector.engine.policy.worker import prove
from sector.engine.policy.workers import Workers, measure_on, with_weights
from sector.engine.run.audit import Exam
from sector.engine.run.goals import Goals
from sector.engine.run.phases import Phases
from sector.engine.samplers.native import NativeSampler
from sector.engine.tasks.addition import TASK as ADDITION
from sector.engine.training.dataset import Provenance, candidates_table, improved_table, write_table

# Four blocks, the last one short, at a temperature: rows must keep their own random streams.
ASKED = Assignment(ADDITION, PlaceLayout(), 7, 800, Filter(k=3, temperature=0.3), 5, 0.4)


@pytest.fixture(scope="module")
def model(supervised_run: Path) -> SectorForCausalLM:
    return load_checkpoint(supervised_run)


@pytest.fixture(scope="module")
def engine(model: SectorForCausalLM) -> NativeSampler:
    return NativeSampler(model, num_threads=1)


@pytest.fixture(scope="module")
def crew() -> Iterator[Workers]:
    with Workers(2, "native") as workers:
        yield workers


def in_files(folder: Path, blocks: Iterator[tuple[torch.Tensor, Any]]) -> tuple[bytes, bytes]:
    """Return the files that a round would write of these blocks: accepted examples, and all candidates."""
    rows, parts = zip(*blocks, strict=True)
    improved = cat(parts)
    assert improved.accepted.any() and not improved.accepted.all()
    provenance = Provenance(7, 5, "native", "ab" * 32)
    folder.mkdir(exist_ok=True)
    write_table(folder / "examples", improved_table(improved, torch.cat(rows), PlaceLayout(), provenance))
    write_table(folder / "candidates", candidates_table(improved))
    return (folder / "examples").read_bytes(), (folder / "candidates").read_bytes()


@pytest.fixture(scope="module")
def expected(engine: NativeSampler, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """One engine of one thread in this process."""
    return in_files(tmp_path_factory.mktemp("expected"), generate(engine, ASKED))


def test_two_workers_write_what_one_engine_writes(
    crew: Workers, model: SectorForCausalLM, engine: NativeSampler, expected: tuple[bytes, bytes], tmp_path: Path
) -> None:
    assert in_files(tmp_path, with_weights(crew, model, engine)(ASKED)) == expected
    pids = {proof.pid for proof in crew.proofs.values()}
    assert len(pids) == 2 and os.getpid() not in pids


def test_workers_solve_several_blocks_together_if_asked_to(
    crew: Workers, model: SectorForCausalLM, engine: NativeSampler, expected: tuple[bytes, bytes], tmp_path: Path
) -> None:
    groups = list(with_weights(crew, model, engine)(replace(ASKED, blocks=3)))
    assert [len(rows) for rows, _ in groups] == [750, 50]
    assert in_files(tmp_path, iter(groups)) == expected


def test_blocks_land_in_order_however_they_come(monkeypatch: pytest.MonkeyPatch, model: SectorForCausalLM) -> None:
    """Three places whose blocks come back last first."""
    monkeypatch.setattr(
        Workers, "_run", lambda self, blocks, asked: ((start, Block(start)) for start in reversed(blocks))
    )
    given = list(Workers(3, "native").generate(ASKED))
    assert [rows.tolist()[0] for rows, _ in given] == list(range(0, 800, 250))
    assert torch.equal(torch.cat([rows for rows, _ in given]), torch.arange(800))


class Block:
    """Stands for a solved block."""

    def __init__(self, start: int) -> None:
        self.problems = range(start, min(start + 250, 800))


def test_a_worker_killed_mid_batch_changes_no_byte(
    crew: Workers, model: SectorForCausalLM, engine: NativeSampler, expected: tuple[bytes, bytes], tmp_path: Path
) -> None:
    solve = with_weights(crew, model, engine)
    before = dict(crew.proofs)

    def kill_on_the_way() -> Iterator[tuple[torch.Tensor, Any]]:
        for index, block in enumerate(solve(ASKED)):
            if index == 1:
                os.kill(before[0].pid, signal.SIGKILL)
            yield block

    assert in_files(tmp_path, kill_on_the_way()) == expected
    # The worker in its place may still have been loading when the last block came.
    assert crew.proofs.get(0) != before[0] and crew.proofs[1].pid == before[1].pid
    assert in_files(tmp_path, solve(ASKED)) == expected


def test_when_all_die_again_and_again_it_gives_up(
    crew: Workers, model: SectorForCausalLM, engine: NativeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = with_weights(crew, model, engine)
    monkeypatch.setattr("sector.engine.policy.deaths.MAX_DEATHS", 1)
    start_actor = crew._start_actor

    def start_and_kill() -> Any:
        crew._ray.kill(actor := start_actor())
        return actor

    monkeypatch.setattr(crew, "_start_actor", start_and_kill)
    for pid in [proof.pid for proof in crew.proofs.values()]:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkersDied, match="3 workers died in a row"):
        list(solve(ASKED))


def test_work_that_kills_workers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where other workers finish their work in between."""
    monkeypatch.setattr("sector.engine.policy.deaths.MAX_DEATHS", 3)
    deaths = Deaths(2)
    for _ in range(3):
        deaths.add(250, RuntimeError("gone"))
        deaths.in_a_row = 0
    deaths.add(500, RuntimeError("gone"))
    with pytest.raises(WorkersDied, match=r"4 workers died at one piece of work \(250\); the last: gone"):
        deaths.add(250, RuntimeError("gone"))


def test_a_machine_may_take_all_its_workers_along() -> None:
    deaths = Deaths(64)
    for number in range(64):
        deaths.add(number, RuntimeError("gone"))
    with pytest.raises(WorkersDied, match="65 workers died in a row"):
        deaths.add(64, RuntimeError("gone"))


def test_workers_measure_what_one_engine_measures(
    crew: Workers, model: SectorForCausalLM, engine: NativeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [
        Exam(ADDITION, PlaceLayout(), policy, ASKED.settings, 1, digits, 60)
        for policy in ("fast", "slow", "improved")
        for digits in (5, 7)
    ]
    expected = [job(engine) for job in jobs]
    assert len({score.correct for score in expected}) > 1
    measure = measure_on(crew, model, engine)
    monkeypatch.delattr(NativeSampler, "sample")
    assert measure(jobs) == expected


def test_a_run_probes_and_audits_on_its_workers(
    crew: Workers, model: SectorForCausalLM, engine: NativeSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the proof of the weights asks the engine of the driver."""
    sample, asked = NativeSampler.sample, []

    def counting(sampler: NativeSampler, prompts: Any, *rest: Any, **named: Any) -> Any:
        asked.append(len(prompts))
        return sample(sampler, prompts, *rest, **named)

    monkeypatch.setattr(NativeSampler, "sample", counting)
    found = []
    for workers in (None, crew):
        asked.clear()
        run, config = start(tmp_path / str(workers is crew), until=7)
        give_weights(run)
        for _ in Phases(run, config, workers).supervise():
            pass
        goals = Goals(config, ADDITION, PlaceLayout())
        reached = goals.reached(run.supervised(6), measure_on(workers, model, engine), cycle=0)
        assert (max(asked) == worker._PROOF_ROWS) == (workers is crew)
        (line,) = run.metrics()
        audited = {name: value for name, value in line.as_json().items() if not name.startswith("seconds")}
        found.append((audited, reached, goals.tokens))
    assert found[0] == found[1] and goals.tokens > 0


def test_a_model_enters_the_object_store_once_for_all_workers(
    crew: Workers, model: SectorForCausalLM, engine: NativeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, put, sizes = new_model("tiny", seed=4), crew._ray.put, []
    monkeypatch.setattr(crew._ray, "put", lambda value: sizes.append(len(value)) or put(value))
    sampler = NativeSampler(other)
    crew.load(other, sampler)
    crew.load(other, sampler)
    assert sizes == [len(checkpoint_files(other))] and len(crew.proofs) == 2
    crew.load(model, engine)
    assert len(sizes) == 2


def test_new_weights_reach_every_worker_and_are_proved(crew: Workers, engine: NativeSampler) -> None:
    other = new_model("tiny", seed=3)
    crew.load(other, NativeSampler(other))
    shas = {proof.weights_sha256 for proof in crew.proofs.values()}
    assert shas == {NativeSampler(other).weights_sha256} and shas != {engine.weights_sha256}


@pytest.mark.parametrize(
    ("field", "what"), [("weights_sha256", "other weights"), ("said", "answers otherwise")], ids=str
)
def test_a_worker_whose_proof_fails_gets_no_work(
    crew: Workers,
    model: SectorForCausalLM,
    engine: NativeSampler,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    what: str,
) -> None:
    """The driver is made to expect something else: for a worker that is the same as to be wrong."""
    monkeypatch.setattr("sector.engine.policy.workers.prove", lambda *args: replace(prove(*args), **{field: "00"}))
    with pytest.raises(RuntimeError, match=what):
        crew.load(model, engine)


def test_a_proof_tells_weights_apart(model: SectorForCausalLM, engine: NativeSampler) -> None:
    """Also where the digest is claimed and not computed."""
    changed = NativeSampler(new_model("tiny", seed=3))
    assert prove(engine, ADDITION, PlaceLayout()) == prove(NativeSampler(model, num_threads=2), ADDITION, PlaceLayout())
    assert prove(changed, ADDITION, PlaceLayout()).said != prove(engine, ADDITION, PlaceLayout()).said


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "127.0.0.1:x", "ray://127.0.0.1:1", "[::1]:1"],
    ids=["nobody", "no port", "no client", "version 6"],
)
def test_a_cluster_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, model: SectorForCausalLM, engine: NativeSampler, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"RAY_ADDRESS={re.escape(address)}"):
        Workers(2, "native").load(model, engine)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["nothing", "something else"])
@pytest.mark.parametrize("scheme", ["", "ray://"], ids=["cluster", "client"])
def test_what_listens_and_is_no_cluster_is_named_soon(
    monkeypatch: pytest.MonkeyPatch, model: SectorForCausalLM, engine: NativeSampler, said: bytes, scheme: str
) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection, suppress(ConnectionResetError):
                connection.sendall(said)
                # Until the caller has had enough.
                while connection.recv(1000):
                    pass

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{server.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(InputError, match=r"no Ray cluster answers at RAY_ADDRESS=.*(timed out|is no Ray)"):
            Workers(2, "native").load(model, engine)
    # Ray tries for half a minute.
    assert time.perf_counter() - start < 15


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="pip install"):
        Workers(2, "native")


def test_what_ray_says_of_a_dead_worker_is_not_data(supervised_run: Path, tmp_path: Path) -> None:
    asked = ["--model", supervised_run, "--digits", 7, "--count", 1000, "--out", tmp_path / "f.parquet"]
    with forked("generate", *asked, "--workers", 2, "--json") as process:
        while not (workers := workers_of(process.pid)):
            assert process.returncode is None, process.stderr.read()
            time.sleep(0.05)
        # At once, as it takes its first weights: all of the work after that may take less than a second.
        os.kill(workers[0], signal.SIGKILL)
        out, talk = process.stdout.read(), process.stderr.read()
    assert process.returncode == 0, talk
    assert "A worker died" in talk
    assert json.loads(out)["tried"] == 1000
