"""Compare the native engine with other engines for small models (peers) at equal shape: the cost of a plain token.

No peer can run our checkpoints: no peer rotates by a token's place, or knows which tokens may follow which. So each
peer decodes a plain Llama of the same sizes with random weights, and `native` decodes the checkpoint without any of its
savings. All decode greedily, in float32, on all cores, with prompts of one length and the same count of new tokens. A
Llama has a gate, a third matrix in its feed-forward; the record has the parameters of both models.

Each contender runs in separate processes (`decoders.py`), which live through the measurement and take turns. In the
warm-up the output is compared with that of transformers for the same weights; a peer with other output is rejected.
Then the fastest batch size is chosen.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sector.engine.language import tokens
from sector.engine.language.layout import Mode
from sector.engine.language.operands import draw_problems
from sector.engine.models.checkpoint import task_and_layout
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.models.sector_config import SectorConfig
from sector.engine.run.steps import OnProgress
from sector.engine.samplers.hf import HuggingFaceSampler
from sector.engine.samplers.protocol import Branch, Sampling
from sector.engine.seeding import generator, stream_seed
from sector.engine.threads import num_cores

CANNOT_RUN = "no peer can run our checkpoints: none rotates by place, or knows which tokens may follow which"
_INSTALL = "pip install 'sector-lm[peers]'"
# Modules of each contender, including the modules of its converter.
_MODULES = {
    "ctranslate2": ("ctranslate2",),
    "onnxruntime-genai": ("onnxruntime_genai", "onnxruntime", "onnx", "onnx_ir"),
    "native": (),
}
# Batch sizes that the warm-up tries. onnxruntime-genai takes at most 32 rows.
_BATCHES = {"ctranslate2": (32, 64, 125, 250), "onnxruntime-genai": (16, 32), "native": (250, 1000)}
_TRIES = 2
# Rows per core that are compared with transformers.
_CHECKED = 8
# The end token of the Llama's vocabulary. Its logit is always 0, so that some other token is always more likely.
_END = 0


class PeerFailed(RuntimeError):
    """A peer cannot be measured; the message gives the reason in one line."""


@dataclass(slots=True)
class EngineProcesses:
    """The processes of one engine, which share its prompts.

    name: name of the engine.
    processes: its processes.
    rows: count of prompts.
    reference: ids that transformers generates for the first prompts.
    errors: file with the stderr of the processes.
    batch: batch size chosen in the warm-up.
    seconds: seconds of each repetition.
    tokens: count of tokens generated in the last repetition.
    """

    name: str
    processes: list["subprocess.Popen[str]"]
    rows: int
    reference: list[list[int]]
    errors: Path
    batch: int = 0
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0

    def decode(self, rows: int, batch: int, show: int = 0) -> tuple[float, list[dict[str, Any]]]:
        """Decode `rows` prompts; return the seconds until all processes are done, and the answer of each.

        batch: most rows that a process decodes at a time.
        show: count of rows per process whose ids are returned.
        """
        num_processes = len(self.processes)
        start = time.perf_counter()
        for index, process in enumerate(self.processes):
            process_rows = len(range(index, rows, num_processes))
            _send(process, json.dumps({"rows": process_rows, "batch": batch, "show": show}))
        answers = [self.answer(process) for process in self.processes]
        return time.perf_counter() - start, answers

    def answer(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        """Return the next answer of a process. Raise PeerFailed if it has died."""
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise PeerFailed(_last_line(self.errors.read_text(encoding="utf-8", errors="replace")))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def warm_up(self) -> None:
        """Compare the output with `reference`, and choose the fastest batch size. Raise PeerFailed if it differs."""
        num_processes, rows = len(self.processes), len(self.reference)
        _, answers = self.decode(rows, _CHECKED, show=rows)
        if any(answer["ids"] != self.reference[index::num_processes] for index, answer in enumerate(answers)):
            raise PeerFailed("it writes other tokens than transformers")
        sizes = [size for size in _BATCHES[self.name] if size <= self.rows] or [self.rows]
        seconds = {size: min(self.decode(self.rows, size)[0] for _ in range(_TRIES)) for size in sizes}
        self.batch = min(seconds, key=seconds.__getitem__)

    def measure(self) -> None:
        """Decode all rows once, and record the time."""
        seconds, answers = self.decode(self.rows, self.batch)
        self.seconds.append(seconds)
        self.tokens = sum(answer["tokens"] for answer in answers)

    def as_json(self) -> dict[str, Any]:
        """Return the rates of the median repetition, and of the slowest and the fastest."""
        return {
            "tokens_per_s": self.tokens / statistics.median(self.seconds),
            "low": self.tokens / max(self.seconds),
            "high": self.tokens / min(self.seconds),
            "tokens": self.tokens,
            "batch": self.batch,
            "processes": len(self.processes),
        }


def compare(
    model: Path, weights: SectorForCausalLM, digits: int, rows: int, repeats: int, seed: int, on_progress: OnProgress
) -> dict[str, Any]:
    """Return `peers` and `equal_shape` of a record: the figures by contender, and the work that all of them did.

    A peer that is not installed or cannot be measured has null for `tokens_per_s`, and the reason as `why`.
    """
    figures: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sector-peers-")))
        shape = _Shape.of(weights, digits, rows, seed)
        llama = shape.write(folder)
        contenders: list[EngineProcesses] = []
        for done, name in enumerate(_MODULES):
            on_progress(done, len(_MODULES), f"{name}, warm-up")
            try:
                files = _model_of(name, model, folder)
                reference = shape.written_natively(weights) if name == "native" else shape.written_by(llama)
                contender = stack.enter_context(_contender(name, files, shape, reference, folder))
                contender.warm_up()
                contenders.append(contender)
            except PeerFailed as error:
                figures[name] = {"tokens_per_s": None, "low": None, "high": None, "why": str(error)}
        for turn in range(repeats):
            for index, contender in enumerate(contenders if turn % 2 == 0 else reversed(contenders)):
                on_progress(turn * len(contenders) + index, repeats * len(contenders), contender.name)
                contender.measure()
    figures |= {contender.name: contender.as_json() for contender in contenders}
    return {"peers": {name: figures[name] for name in _MODULES}, "equal_shape": shape.as_json(weights, llama)}


def with_additions(beside: dict[str, Any], cells: Sequence[dict[str, Any]], tokens_an_addition: int) -> dict[str, Any]:
    """Add to the result of `compare` the additions per second that the improved policy could accept at these rates.

    The native engine also gets `accepted_per_s`, as measured with all its savings; null if it was not measured.

    cells: cells of the same record.
    tokens_an_addition: tokens that the improved policy generates per candidate.
    """
    figures = {name: dict(peer) for name, peer in beside["peers"].items()}
    for peer in figures.values():
        rate = peer["tokens_per_s"]
        peer["additions_per_s_at_most"] = None if rate is None else rate / tokens_an_addition
    digits = beside["equal_shape"]["digits"]
    accepted = [cell["accepted_per_s"] for cell in cells if (cell["engine"], cell["digits"]) == ("native", digits)]
    figures["native"]["accepted_per_s"] = accepted[0] if accepted else None
    shape = {**beside["equal_shape"], "tokens_an_addition": tokens_an_addition}
    return {"peers": figures, "equal_shape": shape}


@dataclass(frozen=True, slots=True)
class _Shape:
    """The work of all contenders.

    config: config of the checkpoint.
    digits: digits per operand.
    native: `[B, P]` prompts of the native engine.
    plain: `[B, P]` prompts of the Llama.
    new_tokens: tokens to generate per prompt.
    seed: seed of the prompts and of the Llama's weights.
    """

    config: SectorConfig
    digits: int
    native: Tensor
    plain: Tensor
    new_tokens: int
    seed: int

    @classmethod
    def of(cls, weights: SectorForCausalLM, digits: int, rows: int, seed: int) -> "_Shape":
        """Draw prompts for simplifications, which make most of the generated tokens, and random prompts as long."""
        layout = task_and_layout(weights)[1]
        prompts = layout.prompt_ids(draw_problems(digits, rows, generator(seed, "bench", digits)), Mode.THINK)
        plain = torch.randint(_END + 1, tokens.NUM_CLASSES, prompts.shape, generator=generator(seed, "peers", digits))
        return cls(weights.config, digits, prompts, plain, layout.simplification_length(digits), seed)

    def write(self, folder: Path) -> LlamaForCausalLM:
        """Write both prompts, and a Llama with random weights and the words `t0`, `t1`, ...; return the Llama."""
        save_file({"prompts": self.native.numpy()}, folder / "native.safetensors")
        save_file({"prompts": self.plain.numpy()}, folder / "plain.safetensors")
        model = self._llama()
        model.save_pretrained(folder / "llama")
        words = {f"t{index}": index for index in range(tokens.NUM_CLASSES)}
        end = f"t{_END}"
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token=end)),
            unk_token=end,
            bos_token=end,
            eos_token=end,
            pad_token=end,
        )
        tokenizer.save_pretrained(folder / "llama")
        return model

    def _llama(self) -> LlamaForCausalLM:
        """Return a Llama of the checkpoint's sizes with random weights."""
        sizes = self.config
        config = LlamaConfig(
            vocab_size=tokens.NUM_CLASSES,
            hidden_size=sizes.hidden_size,
            num_hidden_layers=sizes.num_hidden_layers,
            num_attention_heads=sizes.num_attention_heads,
            num_key_value_heads=sizes.num_attention_heads,
            intermediate_size=sizes.intermediate_size,
            max_position_embeddings=self.plain.shape[1] + self.new_tokens,
            # Large weights make logits that differ enough for rounding not to change the output.
            initializer_range=0.25,
            tie_word_embeddings=False,
            bos_token_id=_END,
            eos_token_id=_END,
            pad_token_id=_END,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.seed, "peers-weights"))
            model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            model.lm_head.weight[_END] = 0
        return model

    def written_by(self, llama: LlamaForCausalLM) -> list[list[int]]:
        """Return the ids that transformers generates for the first prompts of the Llama."""
        prompts = self.plain[: _CHECKED * num_cores()]
        # transformers types `self` as a protocol that its own models do not match.
        generate: Any = llama.generate  # type: ignore[misc]
        ids = generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=self.new_tokens, do_sample=False
        )
        written: list[list[int]] = ids[:, prompts.shape[1] :].tolist()
        return written

    def written_natively(self, weights: SectorForCausalLM) -> list[list[int]]:
        """Return the ids that transformers generates for the first prompts of the native engine."""
        prefix, mark = self.native[: _CHECKED * num_cores()].split([self.native.shape[1] - 1, 1], dim=1)
        sampling = Sampling(0.0, 0, torch.arange(len(prefix)), stage=0)
        (ids,) = HuggingFaceSampler(weights).sample(prefix, [Branch(mark, self.new_tokens)], sampling)
        return ids.tolist()

    def as_json(self, weights: SectorForCausalLM, llama: LlamaForCausalLM) -> dict[str, Any]:
        """Return the entry `equal_shape` of a record."""
        sizes, rows = self.config, len(self.native)
        return {
            "digits": self.digits,
            "rows": rows,
            "prompt_tokens": self.native.shape[1],
            "new_tokens": self.new_tokens,
            "hidden_size": sizes.hidden_size,
            "num_hidden_layers": sizes.num_hidden_layers,
            "num_attention_heads": sizes.num_attention_heads,
            "intermediate_size": sizes.intermediate_size,
            "vocabulary": tokens.NUM_CLASSES,
            "parameters": {"llama": llama.num_parameters(), "native": weights.num_parameters()},
            "dtype": "float32",
            "seed": self.seed,
            "cores": num_cores(),
            "rows_equal_to_transformers": min(rows, _CHECKED * num_cores()),
            "cannot_run": CANNOT_RUN,
        }


def _model_of(name: str, model: Path, folder: Path) -> Path:
    """Return the files that an engine reads; for a peer, convert the Llama. Raise PeerFailed if that fails."""
    if any(find_spec(module) is None for module in _MODULES[name]):
        raise PeerFailed(f"not installed; {_INSTALL}")
    if name == "native":
        return model.resolve()
    out, llama = folder / name, folder / "llama"
    if name == "ctranslate2":
        _run("ctranslate2.converters.transformers", f"--model={llama}", f"--output_dir={out}")
    else:
        cache = f"-c={folder / 'cache'}"
        _run("onnxruntime_genai.models.builder", f"-i={llama}", f"-o={out}", "-p=fp32", "-e=cpu", cache)
        path = out / "genai_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["model"]["decoder"]["session_options"] |= {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
        path.write_text(json.dumps(settings), encoding="utf-8")
    return out


@contextmanager
def _contender(
    name: str, model: Path, shape: _Shape, reference: list[list[int]], folder: Path
) -> Iterator[EngineProcesses]:
    """Start an engine's processes and wait until they are ready; they end with the block.

    Raise PeerFailed if one does not start.
    """
    prompts = folder / ("native.safetensors" if name == "native" else "plain.safetensors")
    # The other two engines run threads on all cores.
    num_processes = min(num_cores(), len(reference)) if name == "onnxruntime-genai" else 1
    errors = folder / f"{name}.txt"
    command = [sys.executable, "-P", str(Path(__file__).with_name("decoders.py")), name, str(model)]
    command += [str(prompts), str(shape.new_tokens)]
    with ExitStack() as stack:
        log = stack.enter_context(errors.open("w", encoding="utf-8"))
        commands = [[*command, str(index), str(num_processes)] for index in range(num_processes)]
        processes = [stack.enter_context(_start(command, log)) for command in commands]
        contender = EngineProcesses(name, processes, len(shape.native), reference, errors)
        for process in processes:
            contender.answer(process)
        yield contender


@contextmanager
def _start(command: Sequence[str], log: IO[str]) -> Iterator["subprocess.Popen[str]"]:
    """Start a process on the CPU that reads requests from stdin; it is killed at the end of the block."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _send(process: "subprocess.Popen[str]", line: str) -> None:
    """Send a line to a process. A dead process is reported when its answer is read."""
    assert process.stdin is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return


def _run(module: str, *arguments: str) -> None:
    """Run a converter without network. Raise PeerFailed with its last line of stderr if it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise PeerFailed(f"cannot convert the model: {_last_line(done.stderr)}")


def _last_line(text: str) -> str:
    """Return the last line of a text, or a message that there is none."""
    return (text.strip().splitlines() or ["it died without a message"])[-1].strip()
