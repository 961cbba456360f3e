"""The tokenizer of a server: as vLLM streams from it, and in a real server with an OpenAI client."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from declared_tasks import Quotients
from programs import ran

from sector.engine.models.checkpoint import resolve_checkpoint
from sector.engine.models.tokenizer import SectorTokenizer
from sector.engine.samplers.vllm.server_tokenizer import ServedTokenizer
from sector.engine.tasks import TASK_DOOR
from sector.engine.tasks.declared import as_task

if sys.platform != "linux":
    pytest.skip("vLLM is for Linux", allow_module_level=True)

SUMS = {"123+456": "579", "999+1": "1000", "0+0": "0", "100+23": "123", "000+000": "0", "9+9+1": "19"}


def _pieces(text: str, task: str = "addition", order: str = "msd") -> list[str]:
    """A text's completion as a server sends it: token by token, from a window of the last few."""
    from vllm.tokenizers.detokenizer_utils import convert_prompt_ids_to_tokens, detokenize_incrementally

    tokenizer = ServedTokenizer(order, task)
    prompt = tokenizer.encode(text[: max(text.find("="), text.find(">")) + 1])
    # The token at which generation stops is not shown: the end, or the padding behind it.
    ids = tokenizer.encode(text)[: -1 if order == "msd" else None]
    pieces = []
    names, prefix, read = convert_prompt_ids_to_tokens(tokenizer, prompt)
    for count in range(len(prompt) + 1, len(ids) + 1):
        more, piece, prefix, read = detokenize_incrementally(
            tokenizer, ids[:count], names, prefix, read, skip_special_tokens=True
        )
        names = names + more
        pieces.append(piece)
    return pieces


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *[pytest.param(f"{problem}={answer}", answer, id=problem) for problem, answer in SUMS.items()],
        pytest.param("~~123+456=579", "579", id="shifted"),
        pytest.param("1000000+5=1000005", "1000005", id="zeros_within"),
        pytest.param("123+456>12+45|9", "12+45|9", id="simplification"),
        pytest.param("103+6+1>10+00+1|0", "10+00+1|0", id="simplification_with_carry"),
    ],
)
def test_streams_plain_decimals(text: str, shown: str) -> None:
    assert "".join(_pieces(text)) == shown


@pytest.mark.parametrize(
    ("task", "text", "shown"),
    [
        pytest.param("subtraction", "452-129-1=322", "322", id="difference"),
        pytest.param("subtraction", "452-129>45-12-1|3", "45-12-1|3", id="difference_step"),
        pytest.param("quotients", "0042/7+0=00060", "00060", id="quotient"),
        pytest.param("quotients", "8432/7>432/7+1|1", "432,7,1,1", id="quotient_step"),
    ],
)
def test_streams_other_tasks(task: str, text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASK_DOOR, "things", {"quotients": as_task(Quotients())})
    assert "".join(_pieces(text, task)) == shown


@pytest.mark.parametrize(
    ("task", "text", "shown"),
    [
        *[pytest.param("addition", f"{problem}={answer}", answer, id=problem) for problem, answer in SUMS.items()],
        pytest.param("addition", "~~123+456=579", "579", id="shifted"),
        pytest.param("addition", f"{'9' * 128}+1=1{'0' * 128}", f"1{'0' * 128}", id="128_digits"),
        pytest.param("addition", "103+6+1>10+00+1|0", "10+00+1|0", id="simplification"),
        pytest.param("subtraction", "452-129-1=322", "322", id="difference"),
        pytest.param("subtraction", "452-129>45-12-1|3", "45-12-1|3", id="difference_step"),
        pytest.param("multiplication", "12*34=408", "0408", id="product"),
        pytest.param("multiplication", "12*34>00,48,00,048,00:048|03*12", "00,48,00,048,00:048|03*12", id="step"),
        pytest.param("quotients", "8432/7>432/7+1|1", "432/7+1|1", id="quotient_step"),
    ],
)
def test_what_begins_with_the_last_digit_is_sent_at_its_end(
    task: str, text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TASK_DOOR, "things", {"quotients": as_task(Quotients())})
    *unfinished, last = _pieces(text, task, "lsd")
    assert set(unfinished) == {""} and last == shown


def test_elsewhere_zeros_stay() -> None:
    ids = SectorTokenizer().encode("123+456=579")
    assert SectorTokenizer().decode(ids) == "123+456=0579"
    assert ServedTokenizer().decode(ids) == ServedTokenizer("lsd").decode(ServedTokenizer("lsd").encode("123+456=579"))
    assert ServedTokenizer().decode(ids) == "123+456=579"


def test_a_token_of_its_own_has_its_text() -> None:
    """As in lists of probabilities."""
    assert [ServedTokenizer("lsd").decode([index]) for index in ServedTokenizer("lsd").encode("7+0=")[1:4]] == [
        "7", "", "+",
    ]  # fmt: skip


@contextmanager
def _server(weights: str, folder: Path) -> Iterator[openai.OpenAI]:
    """A client of a real server on a loopback port, with weights that ship with the package as they are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve` by the name that the build for CPUs has too.
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(resolve_checkpoint(Path(weights))),
    ]
    options = ["--tokenizer-mode", "sector", "--dtype", "float32", "--enforce-eager", "--served-model-name", "sector"]
    memory = ["--kv-cache-memory-bytes", str(64 << 20), "--max-num-seqs", "8"]
    quiet = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, *options, *memory, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **quiet}, stdout=log, stderr=subprocess.STDOUT, cwd=folder,
        )  # fmt: skip
        try:
            yield _connect(server, port, folder / "log")
        finally:
            server.terminate()
            server.wait(60)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """Of a server of sums, most significant digit first."""
    with _server("addition", tmp_path_factory.mktemp("sums")) as client:
        yield client


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """Of a server of products, least significant digit first."""
    with _server("multiplication", tmp_path_factory.mktemp("products")) as client:
        yield client


def _connect(server: subprocess.Popen[bytes], port: int, log: Path) -> openai.OpenAI:
    """A client, as soon as the server answers."""
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    for _ in range(600):
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            client.models.list()
        except openai.APIConnectionError:
            time.sleep(0.5)
        else:
            return client
    raise AssertionError(log.read_text()[-4000:])


@pytest.mark.parametrize(("problem", "answer"), list(SUMS.items()), ids=list(SUMS))
def test_a_server_completes(client: openai.OpenAI, problem: str, answer: str) -> None:
    completed = client.completions.create(model="sector", prompt=f"{problem}=", temperature=0)
    assert completed.choices[0].text == answer and completed.choices[0].finish_reason == "stop"
    pieces = client.completions.create(model="sector", prompt=f"{problem}=", temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == answer


def test_a_server_chats(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(
        model="sector", messages=[{"role": "user", "content": "123+456="}], temperature=0
    )
    assert said.choices[0].message.content == "579"


def test_the_example_asks_a_server(client: openai.OpenAI, tmp_path: Path) -> None:
    server = str(client.base_url).removesuffix("/v1/")
    program = Path(__file__).parents[1] / "examples" / "ask_server.py"
    shown = ran(program, tmp_path, "--small", "--digits", 3, 12, "--server", server)
    assert shown.count("4 of 4") == 2


@pytest.mark.parametrize("prompt", ["hello", "12*3=", "1+2"], ids=str)
def test_a_server_refuses_what_is_no_prompt(client: openai.OpenAI, prompt: str) -> None:
    with pytest.raises(openai.BadRequestError, match=r"is no prompt|is not a problem"):
        client.completions.create(model="sector", prompt=prompt)


def test_a_server_thinks_a_product_through(products: openai.OpenAI) -> None:
    """Steps in the usual order of digits, each of which holds the next problem."""
    for prompt, completion in (
        ("12*34>", "00,48,00,048,00:048|03*12"),
        ("12*03+04>", "00,36,00,036,01:040|0*12"),
        ("12*0+40=", "40"),
    ):
        completed = products.completions.create(model="sector", prompt=prompt, temperature=0, max_tokens=100)
        assert completed.choices[0].text == completion and completed.choices[0].finish_reason == "stop"


def test_a_server_streams_in_one_piece_what_begins_with_the_last_digit(products: openai.OpenAI) -> None:
    pieces = products.completions.create(model="sector", prompt="12*34>", temperature=0, max_tokens=100, stream=True)
    texts = [piece.choices[0].text for piece in pieces]
    assert [text for text in texts if text] == ["00,48,00,048,00:048|03*12"]


def test_a_server_sends_no_text_of_an_unfinished_number(products: openai.OpenAI) -> None:
    cut = products.completions.create(model="sector", prompt="12*34>", temperature=0, max_tokens=10)
    assert cut.choices[0].text == "" and cut.choices[0].finish_reason == "length"
