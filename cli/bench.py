"""`sector bench`: the speed of engines, measured side by side, and the limit of the hardware."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sector.cli import _options as options
from sector.cli._groups import ModelOptions, with_groups
from sector.cli._output import Output, table
from sector.engine.api.settings import chosen_engine, filter_settings, lengths_of
from sector.engine.config import MOST, parse_settings
from sector.engine.errors import InputError
from sector.engine.shares import percent

Dtype = Literal["float32", "bfloat16"]
Isa = Literal["native", "avx2"]

# Style of the tables: a line below the heads.
_LINED: dict[str, object] = {"box": SIMPLE, "padding": 0, "show_edge": False}


@with_groups
def bench(
    named: ModelOptions,
    engine: Annotated[
        str,
        options.option(
            "NAMES", "Engines to measure, separated by commas. Ratios are relative to the first.", "--engine"
        ),
    ] = "native,hf",
    digits: Annotated[str, options.option("LENGTHS", "Digits per operand, as in 20 or 8,16,29,64.")] = "20",
    count: Annotated[int, options.number("M", "Number of problems per length.", 1, MOST)] = 1000,
    batch: Annotated[str, options.option("SIZES", "Number of problems in a batch, as in 250 or 100,1000.")] = "1000",
    repeats: Annotated[
        int, options.number("R", "Number of repetitions, in which the engines take turns.", 1, 1000)
    ] = 3,
    filter_name: options.FilterOption = options.DEFAULT_FILTER,
    k: options.K = options.DEFAULTS.filter.k,
    temperature: options.Temperature = 0.0,
    hard_share: options.HardShare = options.DEFAULTS.hard_share,
    dtype: Annotated[
        Dtype, options.option("NAME", "Number format of the weights: float32, or bfloat16 on a GPU.")
    ] = "float32",
    savings: Annotated[
        bool,
        options.flag("--savings", "Measure native without each of its savings, too; on a GPU, each way to decode."),
    ] = False,
    kernels: Annotated[bool, options.flag("--kernels", "Measure each kernel by itself, too.")] = False,
    training: Annotated[
        bool, options.flag("--training", "Measure the trainer, too, compared with plain eager torch.")
    ] = False,
    peers: Annotated[
        bool,
        options.flag(
            "--peers",
            "Measure CTranslate2 and onnxruntime-genai, too, on a model of equal shape at the first length.",
        ),
    ] = False,
    isa: Annotated[
        Isa, options.option("NAME", "Instruction set: all that the processor has (native), or at most AVX2 (avx2).")
    ] = "native",
    out: Annotated[
        Path | None, options.option("FILE.json", "JSON file to write the record to.", show_default="no file")
    ] = None,
    settings: options.VllmSettings = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Measure the speed of engines that run the improved policy on the same model and problems.

    The main figure is accepted examples per second. "ratio" is the speed of
    the first engine divided by that of the row. "spread" is the difference
    between the fastest and the slowest repetition, as a share of the median.
    "of roof" is the speed as a share of the limit of the hardware. If there
    are several lengths and batch sizes, each combination is measured.

    Examples:

      sector bench --model runs/first
      sector bench --model runs/first --engine native --savings --training
      sector bench --model runs/first --peers --isa avx2
      sector bench --model runs/first --digits 8,16,29 --batch 100,1000 --json
    """
    from sector.benchmarks.instruction_set import hold_to

    # This must happen before torch is imported.
    hold_to(isa)
    from sector.benchmarks.contest import Workload
    from sector.benchmarks.record import BenchOptions
    from sector.benchmarks.record import bench as measure
    from sector.engine.files import check_writable, write_text

    output, model = Output(as_json), named.checked()
    if out:
        check_writable(out)
    names = list(dict.fromkeys(chosen_engine(name.strip()) for name in engine.split(",")))
    workloads = [Workload(length, count, size) for length in lengths_of(digits) for size in _sizes(batch)]
    measured = BenchOptions(
        model, names, workloads, repeats, filter_settings(filter_name, k, temperature), hard_share, seed, dtype,
        savings=savings, kernels=kernels, training=training, peers=peers,
        engine_settings=parse_settings(settings or ()),
    )  # fmt: skip
    with output.progress("measuring") as bar:
        record = measure(measured, bar.at)
    if out:
        write_text(out, json.dumps(record, indent=2) + "\n")
    output.data(record, lambda: view(record))
    if out:
        output.say(f"record: {out}")


def _sizes(text: str) -> list[int]:
    """Return the batch sizes that a text lists, `250` or `100,1000`. Raise InputError if it is not such a list."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) <= 7 and 0 < int(part) <= 1_000_000 for part in parts):
        raise InputError(f"--batch {text!r} is not a list of sizes; write 250 or 100,1000 (1 to 1,000,000)")
    return list(dict.fromkeys(int(part) for part in parts))


def view(record: dict[str, Any]) -> RenderableType:
    """Return the record as tables and lines."""
    from sector.benchmarks.machine import one_line

    shown: list[RenderableType] = [_contest(record)]
    if record["differing"]:
        differing = f"the engines disagree on {record['differing']} problems"
        shown.append(Text(differing, style="bold red"))
    # One per length; it is the same for all batch sizes.
    shown += [_card(card) for card in {card["digits"]: card for card in record["roofline"]}.values()]
    if "kernels" in record:
        shown.append(_kernels(record["kernels"]))
    shown += [_training(entry) for entry in record.get("training", [])]
    if "peers" in record:
        shown += _peers(record)
    shown.append(one_line(record))
    return Group(*shown)


def _contest(record: dict[str, Any]) -> Table:
    names = ("engine", "digits", "batch", "accepted/s", "spread", "tokens/s", "ratio", "of roof", "MiB")
    rows = table(*names, title=f"The improved policy, medians of {record['repeats']}", **_LINED)
    first: dict[tuple[int, int], float] = {}
    for cell in record["cells"]:
        rate = cell["accepted_per_s"]
        best = first.setdefault((cell["digits"], cell["batch"]), rate)
        rows.add_row(
            cell["engine"],
            str(cell["digits"]),
            str(cell["batch"]),
            f"{rate:,.1f}",
            percent((cell["accepted_per_s_high"] - cell["accepted_per_s_low"]) / rate if rate else None, 0),
            f"{cell['tokens_per_s']:,.0f}",
            f"{best / rate:.2f}" if rate else "-",
            percent(cell["share_of_roofline"]),
            f"{cell['peak_memory_bytes'] / 2**20:,.0f}",
        )
    return rows


def _card(card: dict[str, Any]) -> str:
    return (
        f"{card['digits']} digits: a candidate takes {card['tokens_a_candidate']:,} tokens through the model "
        f"({card['generated_a_candidate']:,} are generated), or {card['operations_a_candidate'] / 1e9:.2f} GFLOP; "
        f"busy as it is, this machine multiplies matrices at {card['operations_per_s'] / 1e9:,.0f} GFLOP/s and copies "
        f"{card['copy_bytes_per_s'] / 1e9:,.0f} GB/s: at most {card['candidates_per_s']:,.0f} candidates/s"
    )


def _kernels(lines: list[dict[str, Any]]) -> Table:
    names = ("kernel", "digits", "rows", "reference us", "kernel us", "of copy rate")
    rows = table(*names, title="Kernels, medians", **_LINED)
    for line in lines:
        seconds = line["seconds"]
        rows.add_row(
            line["kernel"],
            str(line["digits"]),
            str(line["rows"]),
            f"{seconds['reference'] * 1e6:,.0f}",
            f"{seconds['kernel'] * 1e6:,.1f}" if "kernel" in seconds else "-",
            percent(line["share_of_copy_rate"]),
        )
    return rows


def _training(entry: dict[str, Any]) -> str:
    phases = ", ".join(f"{name.replace('_', ' ')} {percent(share)}" for name, share in entry["shares"].items())
    return (
        f"training at {entry['digits']} digits: {entry['tokens_per_s']:,.0f} tokens/s, plain eager torch "
        f"{entry['plain_tokens_per_s']:,.0f}: {entry['ratio_to_eager']:.2f}x; shares of a step: {phases}"
    )


def _peers(record: dict[str, Any]) -> list[RenderableType]:
    """Return a table of the speed of plain decoding, and lines that compare it with the native engine."""
    shape, native = record["equal_shape"], record["peers"]["native"]
    title = f"Plain greedy decoding at equal shape, medians of {record['repeats']}"
    speeds = table("engine", "batch", "tokens/s", "spread", "additions/s at most", title=title, **_LINED)
    for name, peer in record["peers"].items():
        rate = peer["tokens_per_s"]
        if rate is None:
            speeds.add_row(name, "-", peer["why"], "", "")
            continue
        spread = percent((peer["high"] - peer["low"]) / rate, 0)
        speeds.add_row(name, str(peer["batch"]), f"{rate:,.0f}", spread, f"{peer['additions_per_s_at_most']:,.1f}")
    sizes, accepted = shape["parameters"], native["accepted_per_s"]
    rows = f"{shape['rows']:,} rows of {shape['prompt_tokens']} + {shape['new_tokens']} tokens"
    llama = f"they decode a plain Llama ({sizes['llama']:,} parameters, native {sizes['native']:,})"
    cost = f"an addition of {shape['digits']} digits takes {shape['tokens_an_addition']:,} generated tokens"
    additions = f"{accepted:,.1f} a second" if accepted else "- (no native in --engine)"
    return [
        speeds,
        f"{rows}; {shape['cannot_run']}: {llama}",
        f"{cost}; native with all its savings accepts {additions}",
    ]
