"""Engines that others use for small models beside our native one, at equal shape: what a plain token costs.

No peer can run our checkpoints: none rotates by a token's place, or knows which tokens may follow which. So each
decodes a plain Llama of the same sizes with random weights, and `native` decodes the checkpoint itself without any of
its savings: prompts of one length, greedy, the same number of new tokens, in float32, on all cores. A Llama has a gate,
a third matrix in its feed-forward; the record has the parameters of both.

Each contender runs in processes of its own (`decoders.py`), which live through the measurement and take turns. Each
gets the batch size that proves best in its warm-up. Before, what it writes is compared with what transformers writes
from the same weights; one that writes anything else is no peer.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
from sector.engine.models.sector import SectorConfig, SectorForCausalLM
from sector.engine.samplers.hf import HuggingFaceSampler
from sector.engine.samplers.protocol import Branch, Sampling
from sector.engine.seeding import generator, stream_seed
from sector.engine.threads import num_cores

OnProgress = Callable[[int, int, str], None]

CANNOT_RUN = "no peer can run our checkpoints: none rotates by place, or knows which tokens may follow which"
_INSTALL = "pip install 'sector-lm[peers]'"
# What each is imported by, its converter included.
_MODULES = {
    "ctranslate2": ("ctranslate2",),
    "onnxruntime-genai": ("onnxruntime_genai", "onnxruntime", "onnx", "onnx_ir"),
    "native": (),
}
# What is tried in the warm-up. onnxruntime-genai takes no more than 32.
_BATCHES = {"ctranslate2": (32, 64, 125, 250), "onnxruntime-genai": (16, 32), "native": (250, 1000)}
_TRIES = 2
# Rows a core that are compared with transformers'.
_CHECKED = 8
# The end of a row in the Llama's vocabulary; its logit is always 0, so that another word is always likelier.
_END = 0


class PeerFailed(RuntimeError):
    """A peer that cannot be measured; why, in one line."""


@dataclass(slots=True)
class Contender:
    """An engine's processes, their prompts dealt out among them; what transformers writes is `reference`."""

    name: str
    processes: list["subprocess.Popen[str]"]
    rows: int
    reference: list[list[int]]
    errors: Path
    batch: int = 0
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0

    def decode(self, rows: int, batch: int, show: int = 0) -> tuple[float, list[dict[str, Any]]]:
        """Seconds that all processes took for `rows` prompts together, and what each answered."""
        number = len(self.processes)
        start = time.perf_counter()
        for index, process in enumerate(self.processes):
            own = len(range(index, rows, number))
            _send(process, json.dumps({"rows": own, "batch": batch, "show": show}))
        answers = [self.answer(process) for process in self.processes]
        return time.perf_counter() - start, answers

    def answer(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        """The next line of a process. PeerFailed if it has died."""
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise PeerFailed(_last_line(self.errors.read_text(encoding="utf-8", errors="replace")))
        answered: dict[str, Any] = json.loads(line)
        return answered

    def warm_up(self) -> None:
        """Compare what it writes, and find the best batch size. PeerFailed if it writes anything else."""
        number, rows = len(self.processes), len(self.reference)
        _, answers = self.decode(rows, _CHECKED, show=rows)
        if any(answer["ids"] != self.reference[index::number] for index, answer in enumerate(answers)):
            raise PeerFailed("it writes other tokens than transformers")
        sizes = [size for size in _BATCHES[self.name] if size <= self.rows] or [self.rows]
        best = {size: min(self.decode(self.rows, size)[0] for _ in range(_TRIES)) for size in sizes}
        self.batch = min(best, key=best.__getitem__)

    def measure(self) -> None:
        """Decode all rows once."""
        seconds, answers = self.decode(self.rows, self.batch)
        self.seconds.append(seconds)
        self.tokens = sum(answer["tokens"] for answer in answers)

    def as_json(self) -> dict[str, Any]:
        """Rates by the median, with those of the slowest and the fastest repetition."""
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
    """`peers` and `equal_shape` of a record: figures by contender, and what they were asked to do.

    A peer that is not there, or cannot be measured, has null for its `tokens_per_s`, and `why`.
    """
    figures: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sector-peers-")))
        shape = _Shape.of(weights, digits, rows, seed)
        llama = shape.write(folder)
        contenders: list[Contender] = []
        for done, name in enumerate(_MODULES):
            on_progress(done, len(_MODULES), f"{name}, warm-up")
            try:
                made = _model_of(name, model, folder)
                reference = shape.written_natively(weights) if name == "native" else shape.written_by(llama)
                contender = stack.enter_context(_contender(name, made, shape, reference, folder))
                contender.warm_up()
                contenders.append(contender)
            except PeerFailed as error:
                figures[name] = {"tokens_per_s": None, "low": None, "high": None, "why": str(error)}
        for turn in range(repeats):
            for index, contender in enumerate(contenders if turn % 2 == 0 else reversed(contenders)):
                on_progress(turn * len(contenders) + index, repeats * len(contenders), contender.name)
                contender.measure()
    figures |= {each.name: each.as_json() for each in contenders}
    return {"peers": {name: figures[name] for name in _MODULES}, "equal_shape": shape.as_json(weights, llama)}


def with_additions(beside: dict[str, Any], cells: Sequence[dict[str, Any]], tokens_an_addition: int) -> dict[str, Any]:
    """What `compare` gave, and what the tokens make: additions that the improved policy accepts, a second.

    tokens_an_addition: what the improved policy generates for a candidate. cells: of the same record; the native engine
    with all of its savings gives the figure that its tokens a second do not tell. Null where it was not measured.
    """
    figures = {
        name: {**own, "additions_per_s_at_most": own["tokens_per_s"] and own["tokens_per_s"] / tokens_an_addition}
        for name, own in beside["peers"].items()
    }
    digits = beside["equal_shape"]["digits"]
    accepted = [cell["accepted_per_s"] for cell in cells if (cell["engine"], cell["digits"]) == ("native", digits)]
    figures["native"]["accepted_per_s"] = accepted[0] if accepted else None
    shape = {**beside["equal_shape"], "tokens_an_addition": tokens_an_addition}
    return {"peers": figures, "equal_shape": shape}


@dataclass(frozen=True, slots=True)
class _Shape:
    """What all contenders do: prompts `[B, P]`, ours and the Llama's, and how many tokens follow each."""

    config: SectorConfig
    digits: int
    native: Tensor
    plain: Tensor
    new_tokens: int
    seed: int

    @classmethod
    def of(cls, weights: SectorForCausalLM, digits: int, rows: int, seed: int) -> "_Shape":
        """The prompts for simplifications, which most of the improved policy's tokens are; random ones as long."""
        layout = task_and_layout(weights)[1]
        prompts = layout.prompt_ids(draw_problems(digits, rows, generator(seed, "bench", digits)), Mode.THINK)
        plain = torch.randint(_END + 1, tokens.NUM_CLASSES, prompts.shape, generator=generator(seed, "peers", digits))
        return cls(weights.config, digits, prompts, plain, layout.simplification_length(digits), seed)

    def write(self, folder: Path) -> LlamaForCausalLM:
        """Lay down both prompts, and a Llama of random weights with its words `t0`, `t1`, ...; returns that."""
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
        own = self.config
        config = LlamaConfig(
            vocab_size=tokens.NUM_CLASSES,
            hidden_size=own.hidden_size,
            num_hidden_layers=own.num_hidden_layers,
            num_attention_heads=own.num_attention_heads,
            num_key_value_heads=own.num_attention_heads,
            intermediate_size=own.intermediate_size,
            max_position_embeddings=self.plain.shape[1] + self.new_tokens,
            # Logits that lie apart, so that rounding decides nothing.
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
        """What transformers makes of the first prompts."""
        prompts = self.plain[: _CHECKED * num_cores()]
        # transformers types `self` as a protocol that its own models do not match.
        generate: Any = llama.generate  # type: ignore[misc]
        ids = generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=self.new_tokens, do_sample=False
        )
        written: list[list[int]] = ids[:, prompts.shape[1] :].tolist()
        return written

    def written_natively(self, weights: SectorForCausalLM) -> list[list[int]]:
        """The same of our own prompts."""
        prefix, mark = self.native[: _CHECKED * num_cores()].split([self.native.shape[1] - 1, 1], dim=1)
        sampling = Sampling(0.0, 0, torch.arange(len(prefix)), stage=0)
        (ids,) = HuggingFaceSampler(weights).sample(prefix, [Branch(mark, self.new_tokens)], sampling)
        return ids.tolist()

    def as_json(self, weights: SectorForCausalLM, llama: LlamaForCausalLM) -> dict[str, Any]:
        """For the record."""
        own, rows = self.config, len(self.native)
        return {
            "digits": self.digits,
            "rows": rows,
            "prompt_tokens": self.native.shape[1],
            "new_tokens": self.new_tokens,
            "hidden_size": own.hidden_size,
            "num_hidden_layers": own.num_hidden_layers,
            "num_attention_heads": own.num_attention_heads,
            "intermediate_size": own.intermediate_size,
            "vocabulary": tokens.NUM_CLASSES,
            "parameters": {"llama": llama.num_parameters(), "native": weights.num_parameters()},
            "dtype": "float32",
            "seed": self.seed,
            "cores": num_cores(),
            "rows_equal_to_transformers": min(rows, _CHECKED * num_cores()),
            "cannot_run": CANNOT_RUN,
        }


def _model_of(name: str, model: Path, folder: Path) -> Path:
    """The files that an engine reads, converted from the Llama for a peer. PeerFailed where that does not go."""
    if any(find_spec(module) is None for module in _MODULES[name]):
        raise PeerFailed(f"not installed; {_INSTALL}")
    if name == "native":
        return model.resolve()
    out, llama = folder / name, folder / "llama"
    if name == "ctranslate2":
        _run("ctranslate2.converters.transformers", f"--model={llama}", f"--output_dir={out}")
    else:
        kept = f"-c={folder / 'cache'}"
        _run("onnxruntime_genai.models.builder", f"-i={llama}", f"-o={out}", "-p=fp32", "-e=cpu", kept)
        path = out / "genai_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["model"]["decoder"]["session_options"] |= {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
        path.write_text(json.dumps(settings), encoding="utf-8")
    return out


@contextmanager
def _contender(name: str, model: Path, shape: _Shape, reference: list[list[int]], folder: Path) -> Iterator[Contender]:
    """Start an engine's processes, all ready; they end with the block. PeerFailed if one does not start."""
    own = "native" if name == "native" else "plain"
    # The other two put their threads on all cores themselves.
    number = min(num_cores(), len(reference)) if name == "onnxruntime-genai" else 1
    errors = folder / f"{name}.txt"
    command = [sys.executable, "-P", str(Path(__file__).with_name("decoders.py")), name, str(model)]
    command += [str(folder / f"{own}.safetensors"), str(shape.new_tokens)]
    with ExitStack() as stack:
        log = stack.enter_context(errors.open("w", encoding="utf-8"))
        processes = [stack.enter_context(_started([*command, str(each), str(number)], log)) for each in range(number)]
        contender = Contender(name, processes, len(shape.native), reference, errors)
        for process in processes:
            contender.answer(process)
        yield contender


@contextmanager
def _started(command: Sequence[str], log: IO[str]) -> Iterator["subprocess.Popen[str]"]:
    """A process that is told what to do line by line, on the CPU; killed with the block."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _send(process: "subprocess.Popen[str]", line: str) -> None:
    """A line to a process; one that has died says so when it is asked for its answer."""
    assert process.stdin is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return


def _run(module: str, *arguments: str) -> None:
    """Run a converter, which finds all that it needs on this disk. PeerFailed with the last line that it wrote."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise PeerFailed(f"cannot convert the model: {_last_line(done.stderr)}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it died and said nothing"])[-1].strip()
