"""Promises of SECURITY.md that no other file tests."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import BaseModel
from small_run import start
from typer.testing import CliRunner

from sector.benchmarks.small_run import small
from sector.cli.app import app
from sector.engine.config import NetworkValue, RunConfig, run_config
from sector.engine.errors import InputError
from sector.engine.files import write_text
from sector.engine.models.checkpoint import load_checkpoint, save_checkpoint
from sector.engine.models.sector import new_model
from sector.engine.run.open import open_run

ROOT = Path(__file__).parent.parent
SOURCES = [
    path for folder in ("engine", "kernels", "cli", "benchmarks", "sector") for path in (ROOT / folder).rglob("*.py")
]
# Unpickling, and code from strings.
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "torch.save", "os.system", "yaml.load", "np.load"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_unpickles_or_runs_text(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            assert not {name.partition(".")[0] for name in names} & FORBIDDEN
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS
            remote = [each for each in node.keywords if each.arg == "trust_remote_code"]
            assert all(isinstance(each.value, ast.Constant) and each.value.value is False for each in remote)


def test_code_that_comes_with_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    """`auto_map` points to a module beside the weights, which would leave a trace."""
    path = tmp_path / "model"
    save_checkpoint(new_model("tiny", 0), path)
    (path / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\nclass Evil: pass\n")
    (path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch trace'\ntR.")
    config = json.loads((path / "config.json").read_text())
    auto = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (path / "config.json").write_text(json.dumps(config | {"auto_map": auto, "trust_remote_code": True}))
    assert type(load_checkpoint(path)).__module__ == "sector.engine.models.sector"
    (path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        load_checkpoint(path)
    assert not (tmp_path / "trace").exists()


def test_no_setting_is_a_path() -> None:
    """Every setting is a number, a switch or one of a few words, at any depth; but for where a run starts."""

    def kinds(model: type[BaseModel]) -> set[str]:
        found = set()
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found |= kinds(inner)
            elif inner is str:
                # The one that names a path, and names of a task and an engine that there are.
                assert name in ("pretrained", "task", "engine")
            elif inner == tuple[str, ...]:
                # Names of checks that there are, and of matrices of a model.
                assert name in ("checks", "lora_targets")
            elif name == "network":
                # Numbers, and names of architectures that transformers has (the test below).
                assert inner == dict[str, NetworkValue]
            elif inner not in (int, float, bool):
                assert "Literal" in str(inner), f"{name} takes {inner}"
        return found

    assert kinds(RunConfig) == set()


@pytest.mark.parametrize(
    "network",
    [
        {"attn_implementation": "org/kernel"},
        {"model_type": "../llama"},
        {"auto_map": "code--Model"},
        {"_name_or_path": "org/model"},
        {"hidden_act": "a.b"},
        {"quantization_config": {"quant_method": "x"}},
        {"architectures": ["Model"]},
    ],
    ids=lambda network: next(iter(network)),
)
def test_a_network_is_described_by_numbers(network: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="network"):
        run_config({"preset": "text-tiny", "network": network})


@pytest.mark.parametrize(
    "text", ["a[bold]b[/bold].parquet", "\x1b[31mred", "two\nlines"], ids=["markup", "escape", "lines"]
)
def test_what_a_file_says_is_shown_as_text(text: str, tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text(f"{json.dumps(text)} = 1\n")
    result = CliRunner().invoke(app, ["run", "--out", str(tmp_path / "run"), "--config", str(config)])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr and "unknown key" in result.stderr
    assert text.splitlines()[0].replace("\x1b", "\\x1b") in result.stderr


def test_a_path_is_no_markup(tmp_path: Path) -> None:
    save_checkpoint(new_model("tiny", 0), tmp_path / "model")
    out = tmp_path / "[red]x[/red].parquet"
    command = ["generate", "--model", str(tmp_path / "model"), "--digits", "2", "--count", "4", "--out", str(out)]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "300"}, catch_exceptions=False).stdout
    assert "[red]x[/red].parquet" in shown


@pytest.mark.parametrize("name", ["rounds", "rounds/07", "checkpoints/07"], ids=str)
def test_a_run_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    """A link in a run that someone else made: files at its end are not ours to mend, and stay."""
    run, _ = start(tmp_path / "run")
    elsewhere = tmp_path / "elsewhere" / "07"
    elsewhere.mkdir(parents=True)
    (elsewhere / "generation.json").write_text("[]")
    (elsewhere / "model.safetensors").write_text("mine")
    (run.root / name).parent.mkdir(exist_ok=True)
    (run.root / name).symlink_to(elsewhere if name.endswith("07") else elsewhere.parent)
    with pytest.raises(InputError, match="leads out of the run"), open_run(run.root, {}, "test"):
        pass
    assert (elsewhere / "generation.json").read_text() == "[]"
    assert (elsewhere / "model.safetensors").read_text() == "mine"


def test_a_link_where_a_file_is_written_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for target in ("mine", "new"):
        (tmp_path / ".out.json.partial").symlink_to(target)
        write_text(tmp_path / "out.json", "{}")
        assert (tmp_path / "out.json").read_text() == "{}" and not (tmp_path / "out.json").is_symlink()
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "new").exists()


def test_training_and_generating_ask_no_network(tmp_path: Path) -> None:
    """Every look-up of a name, and every connection by the internet's protocols, raises in this process."""
    program = (
        "import json, socket, sys\n"
        "def refuse(event, arguments):\n"
        "    if event == 'socket.getaddrinfo' or event == 'socket.connect' and arguments[0].family != socket.AF_UNIX:\n"
        "        raise SystemExit(f'asked the network: {arguments}')\n"
        "sys.addaudithook(refuse)\n"
        "from sector.cli.app import app\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        app(command)\n"
        "    except SystemExit as ended:\n"
        "        if ended.code:\n"
        "            raise\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    save_checkpoint(new_model("tiny", 0), tmp_path / "model")
    config = tmp_path / "small.toml"
    config.write_text(tomli_w.dumps(small(supervised={"cycle_steps": 2})))
    asked = ["--model", tmp_path / "model", "--digits", 2, "--count", 4, "--out", tmp_path / "2.parquet"]
    commands = [["sft", "--out", tmp_path / "run", "--config", config], ["generate", *asked]]
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "best").exists() and (tmp_path / "2.parquet").exists()


def test_ray_sends_and_measures_nothing() -> None:
    """Settings that Ray reads when it is imported."""
    program = (
        "import os\n"
        "from sector.engine.policy.workers import Workers\n"
        "Workers(2, 'native')\n"
        "from ray._common.usage import usage_lib\n"
        "print(usage_lib.usage_stats_enabled(), os.environ['RAY_enable_metrics_collection'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "0"]
