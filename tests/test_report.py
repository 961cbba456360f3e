"""The report: true to the files, whole in one page, safe with hostile text, and readable in a real browser."""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from recorded import round_metrics, write_metrics
from scripted import Scripted
from typer.testing import CliRunner

from sector.cli.app import app
from sector.engine.config import FILTERS, run_config
from sector.engine.errors import InputError
from sector.engine.language.layout import Batch, Layout
from sector.engine.language.operands import draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.policy.improve import improve
from sector.engine.report import write_report
from sector.engine.report.facts import cells_of, gate_answer, read_run, run_roots
from sector.engine.report.lab_charts import phases_of
from sector.engine.run.audit import Gate
from sector.engine.run.directory import RunDir
from sector.engine.run.records import FrontierMistakes, RoundMetrics
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.seeding import generator
from sector.engine.tasks import find_task
from sector.engine.tasks.mistakes import Mistake
from sector.engine.testing.knowing import Knowing
from sector.engine.training.dataset import Provenance, candidates_table, improved_table, write_examples, write_table

POISON = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&$x_1$"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def line(digits: int, accuracy: float) -> RoundMetrics:
    """A line of metrics.jsonl as a run of today writes it."""
    is_round = digits > 6
    counts = {kind.value: 0 for kind in Mistake} | {"right": 90, "carry_missed": 7, "copied": 3}
    rejected = {"unparsable": 1, "outvoted": 1, "not_direct": 1, "not_complement": 1, "not_commutative": 0}
    return round_metrics(
        digits,
        tried=40 if is_round else 0,
        accepted=36 if is_round else 0,
        thought_through=4 if is_round else 0,
        rejected=rejected if is_round else {},
        fast_label_error=0.1 if is_round else None,
        accuracy=dict.fromkeys(range(1, digits + 2), accuracy),
        frontier=FrontierMistakes(fast=counts, slow=counts),
        tokens_generated=1000,
        seconds_train=2.0 if is_round else 60.0,
        seconds_total=62.0 + 5.0 * (digits - 6),
    )


def finished_run(root: Path, accuracy: float = 1.0, until: int = 8, **settings: Any) -> Path:
    """Write a run to `until` digits, as the loop leaves it. Its engine is right except for scripted answers."""
    run = RunDir(root)
    config = run_config({"until": until, **settings})
    run.write_config(config)
    lines = [line(6, 1.0)]
    for digits in range(7, until + 1):
        problems = draw_problems(digits, 40, generator(config.seed, "report", digits), hard_share=0.5)
        texts, complement = problems.texts(), problems[2:3].complement().texts()[0]
        sampler = Scripted({texts[1]: 1, complement: 1}, {texts[3]})
        write_round(run, digits, sampler, problems, PlaceLayout())
        lines.append(line(digits, accuracy))
    write_metrics(root, *lines)
    return root


def write_round(run: RunDir, digits: int, sampler: Sampler, problems: Batch, layout: Layout) -> None:
    """Write the files of a round in which the improved policy tried these problems."""
    rows = torch.arange(len(problems))
    improved = improve(sampler, problems, FILTERS["strict"], layout, Sampling(0.0, 0, rows, 0))
    write_table(run.round(digits).candidates, candidates_table(improved))
    provenance = Provenance(digits, 0, "scripted", "")
    write_examples(run.round(digits).examples, improved_table(improved, rows, layout, provenance))


class Page(HTMLParser):
    """Tags, attributes and text of a page, and the faults on which a browser would fail."""

    VOID = {"meta", "link", "br", "img", "input", "hr"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == [], "tags left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(write_report([run], None).page)


def test_the_page_says_at_once_whether_it_worked(page: Page) -> None:
    assert page.texts[1:3] == ["first", "It worked: from 6 to 8 digits"]
    assert page.text.count("It worked") == 1 and "2 of 2" in page.text


@pytest.mark.parametrize(
    ("accuracy", "settings", "headline"),
    [
        (0.3, {}, "Collapsed after 0 rounds"),
        (0.92, {}, "Reached 8 digits, not clean"),
        (1.0, {"round": {"min_agreement": 0.95}, "until": 9}, "Stopped at 8 of 9 digits: no agreement at 9 digits"),
        (1.0, {"until": 12}, "Under way: 8 of 12 digits"),
    ],
    ids=["collapse", "not clean", "stopped", "under way"],
)
def test_what_did_not_work_is_not_called_so(
    tmp_path: Path, accuracy: float, settings: dict[str, Any], headline: str
) -> None:
    root = finished_run(tmp_path / "run", accuracy)
    RunDir(root).write_config(run_config({"until": 8, **settings}))
    facts = read_run(root)
    assert facts is not None and facts.conclusion.headline == headline and facts.conclusion.level != "good"


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0
    # Clip paths and markers within the charts.
    targets = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert targets and all(target.startswith("#") for target in targets)
    assert not re.search(r"url\((?!#)", page.source) and "@import" not in page.source
    policies = [value for tag, name, value in page.attributes if tag == "meta" and name == "content"]
    assert any("default-src 'none'" in policy for policy in policies)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_no_share_is_rounded_to_all_and_no_figure_is_broken(tmp_path: Path) -> None:
    root = finished_run(tmp_path / "run")
    lines = [json.loads(each) for each in (root / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["accuracy"] |= {"8": 0.9968}
    (root / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    page = Page(write_report([root], None).page)
    # Seven lengths without a mistake, and one with 32 in 10,000.
    assert "mean accuracy 99.96 %" in page.text and "digits: 99.7 % by" in page.text
    assert "99.96\N{NO-BREAK SPACE}%" in page.source and "99.7\N{NO-BREAK SPACE}%" in page.source


def test_the_heat_map_is_as_wide_as_any_audit_looked(tmp_path: Path) -> None:
    root = finished_run(tmp_path / "run")
    lines = [json.loads(each) for each in (root / "metrics.jsonl").read_text().splitlines()]
    lines[0]["accuracy"] = {str(length): 0.9 for length in range(1, 13)}
    (root / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    source = Page(write_report([root], None).page).source
    heat = source[source.index('class="heat"') : source.index("</table>")]
    assert [row.count("<td") for row in heat.split("<tr>")[2:]] == [12, 12, 12]
    assert [row.count(" digits:") for row in heat.split("<tr>")[2:]] == [12, 8, 9]


def test_charts_take_the_page_s_colours_and_come_as_pngs(run: Path, page: Page) -> None:
    assert page.tags["svg"] == 2 * 7 and "var(--ink)" in page.source
    names = {path.name for path in (run / "report").iterdir()}
    expected = "accuracy candidates gate labels mistakes-fast mistakes-slow time"
    assert names == {f"{name}.png" for name in expected.split()}
    assert all((run / "report" / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_figures_are_those_of_the_files(page: Page) -> None:
    # 36 of 40 pass in each of two rounds, all right; of the 4 others only the outvoted and the unparsable are wrong.
    table = page.text[page.text.index("Candidates of all rounds") :]
    accepted = re.search(r"accepted (\d+) (\d+) ([\d.]+) %", table)
    assert accepted is not None and accepted[3] == "100.00" and accepted[1] == accepted[2]
    assert "carry missed" in page.text and "copied" in page.text


@pytest.mark.parametrize(
    ("accepted", "rejected", "answer"),
    [
        pytest.param((90, 90), (3, 10), "Yes: 100.0 % of 90 accepted answers are right, and 30.0 % of 10 rejected ones",
                     id="yes"),
        pytest.param((88, 90), (9, 10), "Not in this data: 97.8 % of 90", id="chance"),
        pytest.param((50, 90), (10, 10), "Not in this data: 55.6 % of 90", id="the other way round"),
        pytest.param((90, 90), (10, 10), "It cannot be told: 100.0 % of 90", id="all right"),
        pytest.param((90, 90), (0, 0), "It cannot be told: all 90 candidates were accepted.", id="none rejected"),
        pytest.param((0, 0), (5, 90), "It cannot be told: all 90 candidates were rejected.", id="none accepted"),
    ],
)  # fmt: skip
def test_the_gate_chart_answers_its_question(accepted: tuple[int, int], rejected: tuple[int, int], answer: str) -> None:
    """From the candidates of two rounds together."""
    halves = [(pair[0] // 2, pair[1] // 2) for pair in (accepted, rejected)]
    rest = [(pair[0] - half[0], pair[1] - half[1]) for pair, half in zip((accepted, rejected), halves, strict=True)]
    assert gate_answer([Gate(*halves), Gate(*rest)]).startswith(answer)


def test_thoughts_can_be_followed(run: Path, page: Page) -> None:
    row = pq.read_table(RunDir(run).round(8).examples).to_pylist()[0]
    thought = page.texts[page.texts.index(row["problem"]) :]
    assert row["simplification"] in thought[:4] and "accepted" in thought[:60]
    joined = "".join(thought[:60])
    assert joined.count(row["answer"]) >= len(row["guesses"])
    assert f"{row['votes']} of {len(row['guesses'])} guesses" in page.text and "of the guesses" not in page.text
    for reason in ("unparsable", "not complement", "not direct"):
        assert reason in page.text


def test_a_chain_that_guesses_at_its_end_says_after_how_many_steps(tmp_path: Path) -> None:
    task = find_task("multiplication")
    engine, run = Knowing(task), RunDir(tmp_path / "products")
    run.write_config(run_config({"task": task.name, "until": 7, "supervised": {"max_digits": 6}}))
    write_round(run, 7, engine, task.draw(7, 10, generator(0, "report")), engine.layout("lsd"))
    write_metrics(run.root, *(line(digits, 1.0) for digits in (6, 7)))
    text = Page(write_report([run.root], None).page).text
    assert "after 7 simplifications guesses" in text and "after 1 simplification " not in text
    changed = text[text.index("Settings that are not the default") :]
    assert "task multiplication" in changed and "max_digits 6" in changed and "digit_order" not in changed


def test_an_old_run_without_frontier_mistakes_has_a_report_too(tmp_path: Path) -> None:
    root = finished_run(tmp_path / "old")
    lines = [json.loads(each) for each in (root / "metrics.jsonl").read_text().splitlines()]
    text = "".join(
        json.dumps({key: value for key, value in each.items() if key != "frontier"}) + "\n" for each in lines
    )
    (root / "metrics.jsonl").write_text(text)
    assert Page(write_report([root], None).page).tags["svg"] == 2 * 5


def test_the_supervised_phase_alone_has_a_report(tmp_path: Path) -> None:
    root = finished_run(tmp_path / "short", until=6)
    text = Page(write_report([root], None).page).text
    assert "It worked: 1 to 6 digits with true answers" in text and "Thoughts" not in text


def poison(path: Path, *columns: str) -> None:
    """Put markup into text columns of a parquet file, wherever they are no numbers."""
    table = pq.read_table(path)
    for name in columns:
        old = table.column(name)
        values = [[POISON] * 2] * len(old) if pa.types.is_list(old.type) else [POISON] * len(old)
        table = table.set_column(table.column_names.index(name), name, pa.array(values, old.type))
    pq.write_table(table, path)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    """A run directory from elsewhere: its name, and every text of its files that is shown, is markup."""
    root = finished_run(tmp_path / "<script>alert(0)<img src=x onerror=y>$a_b$")
    other = finished_run(tmp_path / "_$x^2$&lt;b&gt;", seed=1, hard_share=0.1)
    for run in (RunDir(root), RunDir(other)):
        poison(run.round(8).examples, "guesses")
        poison(run.round(8).candidates, "verdict", "direct")
    page = Page(write_report([root, other], tmp_path / "page.html").page)
    assert page.tags["script"] == page.tags["img"] == 0
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") >= 2
    assert "<script>alert(0)<img src=x onerror=y>$a_b$" in page.text


@pytest.mark.parametrize(
    ("name", "column"),
    [("candidates", "problem"), ("candidates", "answer"), ("examples", "simplification")],
    ids=["problem", "answer", "simplification"],
)
def test_what_is_no_example_is_refused(tmp_path: Path, name: str, column: str) -> None:
    root = finished_run(tmp_path / "run")
    path = RunDir(root).round(8).folder / f"{name}.parquet"
    poison(path, column)
    with pytest.raises(InputError) as caught:
        write_report([root], None)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and not (root / "report.html").exists()


def test_runs_that_differ_in_the_seed_alone_are_one_cell(tmp_path: Path) -> None:
    for seed, accuracy in ((0, 1.0), (1, 0.97)):
        finished_run(tmp_path / "cells" / "plain" / f"seed{seed}", accuracy, seed=seed)
    finished_run(tmp_path / "cells" / "none" / "seed0", 0.4, filter={"vote": "off"})
    report = write_report([tmp_path], None)
    assert [run.name for run in report.runs] == ["none/seed0", "plain/seed0", "plain/seed1"]
    page = Page(report.page)
    rows = page.text[page.text.index("Side by side") : page.text.index("Run by run")]
    assert re.search(r"none 1 8\.0 0\.0 1 of 1, at 7 digits \d", rows)
    assert re.search(r"plain 2 8\.0 2\.0 0 of 2 98\.\d \(", rows)
    assert page.tags["details"] == 3 and "filter.vote" in page.text
    assert (tmp_path / "report" / "compared-accuracy.png").exists()
    assert (tmp_path / "report" / "plain" / "seed1" / "accuracy.png").exists()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of two gates and three leaks; two runs collapse at 9 digits after agreement fell, and one stops at 8."""
    out = tmp_path_factory.mktemp("lab")
    for gate, checks in (("ours", ["direct"]), ("theirs", [])):
        for leak in (0.0, 0.1, 0.3):
            name = f"{gate}-leak-{100 * leak:.0f}" if leak else gate
            for seed in (0, 1) if leak == 0.3 else (0,):
                root = out / "cells" / name / f"seed{seed}"
                finished_run(root, until=9, seed=seed, filter={"checks": checks, "leak": leak})
                if (gate, leak) == ("ours", 0.1):
                    low = line(8, 1.0).model_copy(update={"next_agreement": 0.2})
                    write_metrics(root, line(6, 1.0), line(7, 1.0), low)
                if leak == 0.3 and seed == 0:
                    lines = [line(6, 1.0), line(7, 1.0), line(8, 1.0), line(9, 0.2)]
                    changed = [
                        each.model_copy(update={"agreement": 0.4}) if each.digits == 8 else each for each in lines
                    ]
                    write_metrics(root, *changed)
    return out


def test_a_lab_s_page_shows_rise_and_fall_the_phases_and_the_alarm(lab: Path) -> None:
    report = write_report([lab], None)
    page = Page(report.page)
    names = {path.relative_to(report.beside).name for path in report.pictures}
    assert {"phases.png", "rise-01.png", "rise-06.png"} <= names and "rise-07.png" not in names
    fall = page.text[page.text.index("Rise and fall") : page.text.index("Run by run")]
    assert all(name in fall for name in ("ours-leak-10", "theirs-leak-30", "accuracy at the round's length"))
    table = page.text[page.text.index("Side by side") :]
    assert re.search(r"ours-leak-30 2 9\.0 2\.5 \([^)]*\) 1 of 2, at 9 digits", table)
    alarm = page.text[page.text.index("What sees a collapse coming") :]
    assert re.search(r"ours-leak-10 1 8\.0 2\.0 0 of 1; 1 stopped", table)
    # The run that stopped counts in no alarm.
    assert re.search(r"agreement 2 of 2 1 \(1 to 1\) 0 of 7 runs agreement at most 0\.4", alarm)
    assert "2 of 7 runs collapsed" in alarm
    best = report.alarms[0].as_json()
    assert (best["figure"], best["foretold"], best["rule"]) == ("agreement", 2, "agreement at most 0.4")


def test_a_page_about_many_runs_leaves_out_the_charts_of_each(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sector.engine.report.page.MOST_DRAWN", 7)
    report = write_report([lab], tmp_path / "many.html")
    page = Page(report.page)
    assert page.tags["details"] == 8 and "sector report RUN" in page.text and "Time of the run" in page.text
    assert {path.parent for path in report.pictures} == {tmp_path / "many"}


def test_gates_that_differ_in_their_leak_are_one_line_of_the_phases(lab: Path) -> None:
    runs = [facts for facts in map(read_run, run_roots([lab])) if facts]
    phases = phases_of(cells_of(runs))
    assert {gate: [len(of_leak) for of_leak in leaks.values()] for gate, leaks in phases.items()} == {
        "ours": [1, 1, 2],
        "theirs": [1, 1, 2],
    }
    assert [list(leaks) for leaks in phases.values()] == [[0.0, 0.1, 0.3]] * 2
    assert phases_of(cells_of([run for run in runs if run.config.filter.leak == 0.1])) == {}


def test_the_same_files_give_the_same_page(run: Path, page: Page, tmp_path: Path) -> None:
    assert write_report([run], tmp_path / "again.html").page.read_text() == page.source


def sector(*args: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, args)], prog_name="sector", catch_exceptions=False)


def test_the_command(run: Path, tmp_path: Path) -> None:
    result = sector(run, "--out", tmp_path / "new" / "page.html", "--json")
    values = json.loads(result.stdout)
    (told,) = values["runs"]
    assert (told["run"], told["level"], told["verdict"]) == (str(run), "good", "It worked: from 6 to 8 digits")
    accepted = sum(pq.read_metadata(RunDir(run).round(digits).examples).num_rows for digits in (7, 8))
    assert told["gate"]["accepted"] == [accepted, accepted] and sum(told["label_mistakes"].values()) == accepted
    assert told["gate"]["rejected"][1] == 80 - accepted and told["outcome"]["rounds_survived"] == 2
    assert Path(values["page"]).is_file() and all(map(os.path.isfile, values["pictures"]))


def test_what_cannot_be_reported_is_one_line(run: Path, tmp_path: Path) -> None:
    empty = RunDir(tmp_path / "empty")
    empty.write_config(run_config({}))
    (tmp_path / "folder").mkdir()
    for args, said in (
        ((tmp_path / "nowhere",), "nowhere does not exist"),
        ((tmp_path / "folder",), "folder is neither a run nor a data set"),
        ((empty.root,), "nothing to report yet"),
        ((run, run, empty.root), "--out"),
        ((run, "--out", tmp_path), "directory"),
    ):
        result = sector(*args)
        assert result.exit_code == 2 and result.stdout == "" and said in result.stderr, args
        assert result.stderr.count("\n") == 1


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [500, 1200], ids=["narrow", "wide"])
def test_a_real_browser_shows_it_without_complaint(page: Page, run: Path, tmp_path: Path, width: int) -> None:
    assert BROWSER is not None
    shot = tmp_path / "shot.png"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1400", f"--screenshot={shot}"]
    done = subprocess.run([*command, (run / "report.html").as_uri()], capture_output=True, text=True, timeout=120)
    assert not [each for each in done.stderr.splitlines() if "CONSOLE" in each]
    pixels = pixels_of(shot)
    assert pixels.shape[1] == width and len(torch.unique(pixels.flatten(0, 1), dim=0)) > 50


def pixels_of(path: Path) -> torch.Tensor:
    """A PNG as `[height, width, 3]`."""
    from matplotlib.image import imread

    return torch.from_numpy(imread(path)[..., :3].copy())
