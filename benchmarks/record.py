"""A record: everything that one `sector bench` measured, with what it was measured on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sector.benchmarks import contest, kernel_times, peers, roofline, training
from sector.benchmarks.contest import Cell, Contest, Workload
from sector.benchmarks.machine import describe
from sector.engine.config import Filter
from sector.engine.errors import InputError
from sector.engine.models.checkpoint import load_sector, task_and_layout, weights_sha256
from sector.engine.run.steps import OnProgress, check_digits, vllm_settings
from sector.engine.tasks import DEFAULT
from sector.engine.training.distill import tune_allocator

KERNEL_ROWS = 4096
TRAINING_STEPS = 40


def bench(
    model: Path,
    engines: Sequence[str],
    workloads: Sequence[Workload],
    *,
    repeats: int,
    settings: Filter,
    hard_share: float,
    seed: int,
    dtype: str,
    savings: bool,
    kernels: bool,
    trains: bool,
    with_peers: bool = False,
    on_progress: OnProgress,
    given: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure; the first engine is the one that ratios are of. InputError on what cannot be measured.

    given: as in `offline.open_engine`.
    """
    for workload in workloads:
        check_digits(workload.digits)
    weights = load_sector(model)
    if weights.config.task != DEFAULT:
        raise InputError(
            f"{model} has learned {weights.config.task}; benchmarks are of {DEFAULT}, name a model of that"
        )
    if weights.device.type == "cpu" and dtype != "float32":
        raise InputError(f"--dtype {dtype} is for GPUs; on a CPU engines compute in float32")
    weights.to(getattr(torch, dtype))
    ceilings = roofline.measure_ceilings(weights)
    tune_allocator()
    # Before the engines: a fresh process has the machine to itself then.
    lengths = list(dict.fromkeys(each.digits for each in workloads))
    trained = [training.compare(model, each, TRAINING_STEPS, repeats, on_progress) for each in lengths if trains]
    beside = (
        peers.compare(model, weights, lengths[0], workloads[0].count, repeats, seed, on_progress) if with_peers else {}
    )
    contenders = contest.engines(engines, weights, vllm_settings(model, given))
    if savings:
        contenders += contest.variants(weights)
    _, layout = task_and_layout(weights)
    terms = Contest(settings, layout, settings.temperature, seed, hard_share)
    cells: list[Cell] = []
    unlike = 0
    for of_workload, differing in terms.run(contenders, workloads, repeats, weights.device, on_progress):
        cells += of_workload
        unlike += differing
    cards = [roofline.card(weights, ceilings, each.digits, settings, each.batch or each.count) for each in workloads]
    bounds = {(each.digits, each.batch): card["candidates_per_s"] for each, card in zip(workloads, cards, strict=True)}
    figures = contest.summary(cells)
    record: dict[str, Any] = {
        "engines": {name: figures[name] for name in engines},
        "ratios": contest.ratios({name: figures[name] for name in engines}, engines[0]),
        "differing": unlike,
        "cells": [_cell(cell, bounds[cell.workload.digits, cell.workload.batch]) for cell in cells],
        "roofline": cards,
        "repeats": repeats,
        "filter": settings.model_dump(),
        "hard_share": hard_share,
        "seed": seed,
        "dtype": str(weights.dtype).removeprefix("torch."),
        "weights_sha256": weights_sha256(weights),
        **describe(),
    }
    if savings:
        record["savings"] = contest.ratios(figures, engines[0])
    if kernels:
        rows = [
            line
            for digits in lengths
            for line in kernel_times.measure_kernels(weights, digits, KERNEL_ROWS, ceilings.copy_bytes_per_s)
        ]
        record["kernels"] = rows
    if trains:
        record["training"] = trained
    if with_peers:
        record |= peers.with_additions(beside, record["cells"], cards[0]["generated_a_candidate"])
    return record


def _cell(cell: Cell, bound: float) -> dict[str, Any]:
    """A cell with the share of what the roofline allows: candidates per second, by candidates."""
    candidates_per_s = cell.workload.count / cell.median
    return {**cell.as_json(), "share_of_roofline": candidates_per_s / bound}
