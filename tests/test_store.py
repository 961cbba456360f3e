"""A data set in a store: a real server of the S3 protocol on this machine, read and written through fsspec."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from forked import forked
from typer.testing import CliRunner

import sector
from sector.cli.app import app
from sector.engine.errors import InputError
from sector.engine.models.checkpoint import load_checkpoint, weights_sha256
from sector.engine.run.part_folder import MANIFEST
from sector.engine.training.locations import location_of

MODEL = sector.load("addition")
ASKED: dict[str, Any] = {"digits": 5, "count": 700, "seed": 3, "k": 2, "part_rows": 250}
WORDS = ("generate", "--model", "addition", "--digits", 5, "--count", 700, "--seed", 3, "--k", 2, "--part-rows", 250)
PARTS = [f"part-{number:05d}.parquet" for number in range(3)]
BUCKET = "examples"


class Store:
    """The server, seen by another client than fsspec's."""

    def __init__(self, address: str) -> None:
        self._client = boto3.client("s3", endpoint_url=address)
        self._client.create_bucket(Bucket=BUCKET)

    def contents(self, folder: str) -> dict[str, bytes]:
        """All files of a folder by name."""
        found = self._client.list_objects_v2(Bucket=BUCKET, Prefix=f"{folder}/").get("Contents", [])
        keys = [entry["Key"] for entry in found]
        return {
            key.removeprefix(f"{folder}/"): self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for key in keys
        }

    def put(self, folder: str, name: str, content: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=f"{folder}/{name}", Body=content)

    def remove(self, folder: str, name: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=f"{folder}/{name}")


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server,
    ):
        for name, value in settings.items():
            patch.setenv(name, value)
        while server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield Store(address)
        server.terminate()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data set in a folder of this machine."""
    folder = tmp_path_factory.mktemp("parts") / "local"
    sector.generate(MODEL, out=f"{folder}/", **ASKED)
    return folder


@pytest.fixture(scope="module")
def expected(local: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in local.iterdir() if not path.name.startswith(".")}
    assert sorted(files) == sorted([*PARTS, MANIFEST])
    return files


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def refusal(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return str(line)


@pytest.mark.parametrize("workers", [None, 2], ids=["this process", "two workers"])
def test_a_store_gets_the_bytes_of_a_folder(store: Store, expected: dict[str, bytes], workers: int | None) -> None:
    labels = sector.generate(MODEL, out=f"s3://{BUCKET}/by{workers}/", workers=workers, **ASKED)
    assert store.contents(f"by{workers}") == expected
    assert str(labels.file) == f"s3://{BUCKET}/by{workers}" and len(labels.table) == labels.counts.accepted


def test_a_killed_command_goes_on_at_the_missing_parts(store: Store, expected: dict[str, bytes]) -> None:
    words = (*WORDS, "--out", f"s3://{BUCKET}/killed/", "--json")
    with forked(*words) as process:
        while not any(name in PARTS for name in store.contents("killed")):
            assert process.returncode is None, process.stderr.read()
            time.sleep(0.002)
        process.kill()
    left = [name for name in store.contents("killed") if name in PARTS]
    report = json.loads(run(*words).stdout)
    assert report["this_call"]["parts"] == 3 - len(left) and store.contents("killed") == expected


@pytest.mark.parametrize("name", [PARTS[1], MANIFEST], ids=str)
def test_a_damaged_file_is_made_again(store: Store, expected: dict[str, bytes], name: str) -> None:
    for other, content in expected.items():
        store.put(f"flipped-{name}", other, content if other != name else content[:-9] + b"?" + content[-8:])
    report = json.loads(run(*WORDS, "--out", f"s3://{BUCKET}/flipped-{name}/", "--json").stdout)
    assert report["this_call"]["mended"] == [name] and store.contents(f"flipped-{name}") == expected


def test_a_damaged_manifest_is_named_once(store: Store, expected: dict[str, bytes]) -> None:
    """Also where a part is missing, so that the manifest is read a second time."""
    for name in (*PARTS[1:], MANIFEST):
        store.put("twice", name, expected[name] if name != MANIFEST else b"{")
    report = json.loads(run(*WORDS, "--out", f"s3://{BUCKET}/twice/", "--json").stdout)
    assert report["this_call"]["mended"] == [MANIFEST] and store.contents("twice") == expected


def test_other_settings_are_refused(store: Store, expected: dict[str, bytes]) -> None:
    for name, content in expected.items():
        store.put("seeds", name, content)
    line = refusal(*WORDS, "--seed", 4, "--out", f"s3://{BUCKET}/seeds/")
    assert "was made with seed = 3, not 4" in line and store.contents("seeds") == expected


def test_the_second_of_two_calls_finds_the_manifest_of_the_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both look before either has written."""
    from sector.engine.run import part_folder

    opened = part_folder.PartFolder.open

    def open_then_other_begins(folder: part_folder.PartFolder) -> None:
        monkeypatch.setattr(part_folder.PartFolder, "open", opened)
        folder.open()
        sector.generate(MODEL, out=f"s3://{BUCKET}/raced/", **{**ASKED, "seed": 5, "count": 250})

    monkeypatch.setattr(part_folder.PartFolder, "open", open_then_other_begins)
    with pytest.raises(InputError, match="was made with count = 250, not 700"):
        sector.generate(MODEL, out=f"s3://{BUCKET}/raced/", **ASKED)
    assert json.loads(store.contents("raced")[MANIFEST])["settings"]["seed"] == 5


def test_training_and_the_report_read_a_store(
    store: Store, expected: dict[str, bytes], local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in expected.items():
        store.put("read", name, content)
    made = []
    for number, data in enumerate((f"s3://{BUCKET}/read/", local)):
        out = tmp_path / str(number)
        assert run("distill", "--model", "addition", "--data", data, "--steps", 2, "--out", out).exit_code == 0
        made.append(weights_sha256(load_checkpoint(out)))
    assert made[0] == made[1]
    monkeypatch.chdir(tmp_path)
    assert run("report", f"s3://{BUCKET}/read").exit_code == 0
    shutil.copytree(local, tmp_path / "twin")
    assert run("report", "twin", "--out", "twin.html").exit_code == 0
    page, twin = ((tmp_path / name).read_text() for name in ("read.html", "twin.html"))
    assert page.replace(f"s3://{BUCKET}/read", "twin").replace("read", "twin") == twin.replace("read", "twin")


def test_a_part_that_is_gone_is_named(store: Store, expected: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in expected.items():
        store.put("gone", name, content)
    store.remove("gone", PARTS[2])
    words = ("distill", "--model", "addition", "--data", f"s3://{BUCKET}/gone", "--out", tmp_path / "made")
    assert f"s3://{BUCKET}/gone/{PARTS[2]} is damaged or missing" in refusal(*words)


@pytest.mark.parametrize(
    ("address", "named"),
    [
        (f"s3://{BUCKET}/one.parquet", "end it with a slash"),
        ("s3://missing/parts/", "cannot write s3://missing/parts/manifest.json"),
        ("nostore://a/parts/", "install fsspec's driver for nostore"),
    ],
    ids=["file", "bucket", "protocol"],
)
@pytest.mark.usefixtures("store")
def test_an_address_that_cannot_be_written_is_refused(address: str, named: str) -> None:
    assert named in refusal(*WORDS, "--out", address)


@pytest.mark.usefixtures("store")
def test_a_store_without_credentials_is_named() -> None:
    nothing = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    with forked(*WORDS, "--out", f"s3://{BUCKET}/secret/", environment=nothing) as process:
        said = process.stderr.read()
    assert process.returncode == 2 and f"s3://{BUCKET}/secret/" in said
    assert "cannot be reached" in said and "credentials" in said


def test_without_its_package_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(InputError, match=r"pip install 'sector-lm\[s3\]'"):
        location_of(f"s3://{BUCKET}/parts/")


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("s3:///nine/", "cannot be reached .* check its address"),
        ("dir://nine/", "cannot be reached .* check its address"),
        ("://nine/", "names no protocol"),
        ("x://nine/", "names no protocol"),
        ("unknown://nine/", "install fsspec's driver for unknown"),
    ],
    ids=["no bucket", "a driver that needs more", "no protocol", "a drive", "unknown"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_bad_address_is_refused(address: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        location_of(address)


def test_a_file_address_is_a_path(tmp_path: Path) -> None:
    assert location_of(f"file://{tmp_path}/x") == location_of(f"local://{tmp_path}/x") == tmp_path / "x"
