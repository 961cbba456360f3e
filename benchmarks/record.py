"""Measure everything that one `sector bench` asks for, as one record with a description of the machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sector.benchmarks import contest, kernel_times, peers, roofline, training
from sector.benchmarks.contest import Contest, ContestResult, Workload
from sector.benchmarks.machine import describe
from sector.engine.config import Filter, Values
from sector.engine.errors import InputError
from sector.engine.models.checkpoint import Model, load_checkpoint, task_and_layout, weights_sha256
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.models.text import TextModel
from sector.engine.run.steps import OnProgress, check_digits, vllm_settings
from sector.engine.tasks import DEFAULT
from sector.engine.training.distill import tune_allocator

KERNEL_ROWS = 4096
TRAINING_STEPS = 40


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The measurements of one `sector bench`.

    model: checkpoint or run directory.
    engines: names of the engines; ratios are of the first.
    workloads: the problems.
    repeats: repetitions of each measurement.
    settings: vote and checks.
    hard_share: share of problems harder than uniform digits.
    seed: seed of problems and sampling.
    dtype: dtype of the weights.
    savings: also measure variants of the native engine.
    kernels: also time the kernels one by one.
    training: also measure the trainer.
    peers: also measure other engines at equal shape.
    engine_settings: settings of the engine `vllm`, as in `steps.open_engine`.
    """

    model: Path
    engines: Sequence[str]
    workloads: Sequence[Workload]
    repeats: int
    settings: Filter
    hard_share: float
    seed: int
    dtype: str
    savings: bool = False
    kernels: bool = False
    training: bool = False
    peers: bool = False
    engine_settings: Values | None = None

    @property
    def lengths(self) -> list[int]:
        """Digits of the workloads, each length once."""
        return list(dict.fromkeys(workload.digits for workload in self.workloads))


def bench(options: BenchOptions, on_progress: OnProgress) -> dict[str, Any]:
    """Measure and return the record. Raise InputError for options that cannot be measured."""
    weights = _load(options)
    own = _own(options, weights)
    ceilings = None if own is None else roofline.measure_ceilings(own)
    tune_allocator()
    # Measured before the engines are made, while this process does nothing else.
    beside = {} if own is None else _measure_in_processes(options, own, on_progress)
    cells, differing = _run_contest(options, weights, on_progress)
    cards = [
        roofline.card(own, ceilings, workload.digits, options.settings, workload.batch or workload.count)
        for workload in options.workloads
        if own is not None and ceilings is not None
    ]
    bounds = {
        (workload.digits, workload.batch): card["candidates_per_s"]
        for workload, card in zip(options.workloads, cards, strict=False)
    }
    figures, first = contest.summary(cells), options.engines[0]
    engines = {name: figures[name] for name in options.engines}
    record: dict[str, Any] = {
        "engines": engines,
        "ratios": contest.ratios(engines, first),
        "differing": differing,
        "cells": [_cell(cell, bounds.get((cell.workload.digits, cell.workload.batch))) for cell in cells],
        "roofline": cards,
        "repeats": options.repeats,
        "filter": options.settings.model_dump(),
        "hard_share": options.hard_share,
        "seed": options.seed,
        "dtype": str(weights.dtype).removeprefix("torch."),
        "weights_sha256": weights_sha256(weights),
        **describe(),
    }
    if options.savings:
        record["savings"] = contest.ratios(figures, first)
    if options.kernels and own is not None and ceilings is not None:
        record["kernels"] = [
            line
            for digits in options.lengths
            for line in kernel_times.measure_kernels(own, digits, KERNEL_ROWS, ceilings.copy_bytes_per_s)
        ]
    if options.training:
        record["training"] = beside["training"]
    if options.peers:
        record |= peers.with_additions(beside, record["cells"], cards[0]["generated_a_candidate"])
    return record


def _load(options: BenchOptions) -> Model:
    """Return the weights. Raise InputError for options that cannot be measured."""
    for workload in options.workloads:
        check_digits(workload.digits)
    weights = load_checkpoint(options.model)
    if weights.device.type == "cpu" and options.dtype != "float32":
        raise InputError(f"--dtype {options.dtype} is for GPUs; on a CPU engines compute in float32")
    weights.to(getattr(torch, options.dtype))
    return weights


def _own(options: BenchOptions, weights: Model) -> SectorForCausalLM | None:
    """Return the weights if the limit of the hardware is worked out for them: those of our own model of addition.

    Raise InputError for measurements that others do not have.
    """
    if isinstance(weights, SectorForCausalLM) and weights.config.task == DEFAULT:
        return weights
    what = "is a model of text" if isinstance(weights, TextModel) else f"has learned {weights.config.task}"
    for name in ("kernels", "training", "peers", *(["savings"] if isinstance(weights, TextModel) else [])):
        if getattr(options, name):
            raise InputError(f"{options.model} {what}; --{name} takes sector's own model of {DEFAULT}")
    return None


def _measure_in_processes(options: BenchOptions, weights: SectorForCausalLM, on_progress: OnProgress) -> dict[str, Any]:
    """Return the figures that are measured in separate processes: `training`, `peers` and `equal_shape`."""
    figures: dict[str, Any] = {}
    if options.training:
        figures["training"] = [
            training.compare(options.model, digits, TRAINING_STEPS, options.repeats, on_progress)
            for digits in options.lengths
        ]
    if options.peers:
        workload = options.workloads[0]
        figures |= peers.compare(
            options.model, weights, workload.digits, workload.count, options.repeats, options.seed, on_progress
        )
    return figures


def _run_contest(options: BenchOptions, weights: Model, on_progress: OnProgress) -> tuple[list[ContestResult], int]:
    """Return the cells of all contenders, and the count of problems on which contenders differ."""
    contenders = contest.engines(options.engines, weights, vllm_settings(options.model, options.engine_settings))
    if options.savings and isinstance(weights, SectorForCausalLM):
        contenders += contest.variants(weights)
    terms = Contest(
        options.settings, *task_and_layout(weights), options.settings.temperature, options.seed, options.hard_share
    )
    cells: list[ContestResult] = []
    differing = 0
    for workload_cells, num_differing in terms.run(
        contenders, options.workloads, options.repeats, weights.device, on_progress
    ):
        cells += workload_cells
        differing += num_differing
    return cells, differing


def _cell(cell: ContestResult, bound: float | None) -> dict[str, Any]:
    """Return a cell with its share of the roofline.

    bound: candidates per second that the roofline allows; None if it is not worked out.
    """
    candidates_per_s = cell.workload.count / cell.median
    return {**cell.as_json(), "share_of_roofline": None if bound is None else candidates_per_s / bound}
