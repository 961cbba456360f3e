"""A round that is killed while it generates goes on at its missing parts, and its files have the same bytes."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import give_weights, kill_when, start

import sector
from sector.engine.config import FILTERS, FilterName, VllmConfig, run_config
from sector.engine.language.rows import cat
from sector.engine.models.checkpoint import task_and_layout
from sector.engine.policy import generate as generation
from sector.engine.policy.generate import Assignment
from sector.engine.policy.generate import generate as generate_all
from sector.engine.run import round_parts
from sector.engine.run.directory import RunDir
from sector.engine.run.events import Event, Generated
from sector.engine.run.phases import Phases
from sector.engine.run.records import GenerationRecord
from sector.engine.run.round_parts import RoundParts
from sector.engine.samplers import make_sampler
from sector.engine.training.dataset import Provenance, candidates_table, improved_table, write_table

# Four blocks, the last one short.
ROUND = {"candidates": 800, "pool": 1, "probe": 10, "probe_trained": 0, "cycle_steps": 1, "max_cycles": 1}
# As few tokens as a chain and a check can take.
FILTER = {"vote": "unanimous", "checks": ("direct",), "k": 2, "think_through": False}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose supervised phase is done."""
    root = tmp_path_factory.mktemp("rounds") / "run"
    run, config = start(root, round=ROUND, filter=FILTER, until=7)
    give_weights(run)
    run.keep_settings(config)
    for _ in Phases(run, config).supervise():
        pass
    return root


@pytest.fixture
def root(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run", symlinks=True))


def generate(root: Path, **changes: Any) -> Iterator[Event]:
    run = RunDir(root)
    config = run_config({**run.read_config().model_dump(mode="json"), **changes})
    return Phases(run, config).generate(run.round(7))


def files(root: Path) -> dict[str, bytes]:
    folder = RunDir(root).round(7).folder
    assert {path.name for path in folder.iterdir()} == {
        "candidates.parquet",
        "examples.parquet",
        "examples.preview.jsonl",
        "generation.json",
    }
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}


def counts(root: Path) -> dict[str, Any]:
    record = RunDir(root).round(7).read(GenerationRecord)
    assert record is not None and record.seconds > 0
    return record.model_dump(exclude={"seconds"})


@pytest.fixture(scope="module")
def whole(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run after a round's generation that nothing disturbed."""
    root = Path(shutil.copytree(begun, tmp_path_factory.mktemp("whole") / "run", symlinks=True))
    assert [event.tried for event in generate(root) if isinstance(event, Generated)] == [250, 500, 750, 800]
    return root


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First candidates of the parts that are generated from here on."""
    made: list[int] = []

    def spy(sampler: Any, start: int, *rest: Any) -> Any:
        made.append(start)
        return generation.generate_blocks(sampler, start, *rest)

    monkeypatch.setattr(round_parts, "generate_blocks", spy)
    return made


def test_a_round_goes_on_at_its_missing_parts(root: Path, whole: Path, made: list[int]) -> None:
    events = generate(root)
    next(events)
    next(events)
    # As a kill leaves it: nothing after the second part runs.
    del events
    first = made.copy()
    made.clear()
    tried = [event.tried for event in generate(root) if isinstance(event, Generated)]
    assert first == [0, 250] and made == [500, 750] and tried == [750, 800]
    assert files(root) == files(whole) and counts(root) == counts(whole)


def test_a_killed_command_goes_on_at_its_missing_parts(root: Path, whole: Path, made: list[int]) -> None:
    assert kill_when(root, lambda event: event["event"] == "generate" and event["tried"] >= 500)
    left = len(list(RunDir(root).round(7).parts.glob("*.examples.parquet")))
    assert left >= 2
    list(generate(root))
    assert len(made) == 4 - left
    assert files(root) == files(whole) and counts(root) == counts(whole)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("kind", ["examples", "candidates"], ids=str)
@pytest.mark.parametrize("damage", [_cut, Path.unlink], ids=["cut", "removed"])
def test_a_damaged_part_is_made_again(root: Path, whole: Path, made: list[int], kind: str, damage: Any) -> None:
    events = generate(root)
    for _ in range(3):
        next(events)
    del events
    made.clear()
    damage(RunDir(root).round(7).parts / f"0000000250.{kind}.parquet")
    list(generate(root))
    assert made == [250, 750] and files(root) == files(whole)


def test_parts_of_other_sizes_fit_together(root: Path, whole: Path, made: list[int]) -> None:
    parts = RunDir(root).round(7).parts
    events = generate(root)
    for _ in range(3):
        next(events)
    del events
    for kind in ("examples", "candidates"):
        (parts / f"0000000000.{kind}.parquet").unlink()
    made.clear()
    # Two blocks together now, but the second one is there already.
    list(generate(root, blocks=2))
    assert made == [0, 750] and files(root) == files(whole)


def test_parts_of_another_attempt_do_not_count(root: Path, whole: Path, made: list[int]) -> None:
    next(generate(root, seed=1))
    made.clear()
    list(generate(root))
    assert made == [0, 250, 500, 750] and files(root) == files(whole)


def test_parts_that_a_kill_left_beside_the_whole_are_removed(root: Path, whole: Path) -> None:
    list(generate(root))
    parts = RunDir(root).round(7).parts
    parts.mkdir()
    (parts / "0000000000.examples.parquet").write_bytes(b"left")
    assert list(generate(root)) == [] and files(root) == files(whole)


@pytest.mark.parametrize(
    ("name", "filter_name", "lessons", "accepts"),
    [("addition", "strict", 1, True), ("multiplication", "none", 2, True), ("addition", "strict", 1, False)],
    ids=["addition", "chains", "nothing accepted"],
)
def test_joined_parts_are_the_tables_of_one_batch(
    tmp_path: Path, name: str, filter_name: FilterName, lessons: int, accepts: bool
) -> None:
    trained = sector.load(name)
    sampler = make_sampler("native", trained.model, VllmConfig())
    task, layout = task_and_layout(trained.model)
    settings = FILTERS[filter_name].model_copy(update={"k": 2, "think_through": False})
    if not accepts:
        # By chance, and of no candidate.
        settings = settings.model_copy(update={"checks": (), "vote": "unanimous", "temperature": 10.0})
    asked = Assignment(task, layout, 3, 600, settings, 5, 0.3)
    rows, blocks = zip(*generate_all(sampler, asked), strict=True)
    improved, origin = cat(list(blocks)), Provenance(3, 5, "native", sampler.weights_sha256)
    assert (len(improved.examples_by_step()) >= lessons) and bool(improved.accepted.any()) == accepts
    parts = RoundParts(tmp_path / "parts", origin)
    maker = parts.maker(1)
    for first in (500, 0, 250):
        parts.add(maker(sampler, asked, first))
    again = RoundParts(tmp_path / "parts", origin)
    again.open()
    for kind, one in (
        ("examples", improved_table(improved, torch.cat(rows), layout, origin)),
        ("candidates", candidates_table(improved)),
    ):
        write_table(tmp_path / "one", one)
        write_table(tmp_path / "joined", getattr(again, kind)())
        assert (tmp_path / "one").read_bytes() == (tmp_path / "joined").read_bytes(), kind
    record = again.generation(1.0)
    assert (record.vote_entropy, record.disagreement) == (improved.vote_entropy, improved.disagreement)
    assert record.tokens == improved.tokens and record.rejected == improved.rejected()
