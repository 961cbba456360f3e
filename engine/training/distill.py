"""The trainer: distills the results of slow thinking into direct answers (SECToR section 3.3).

An example is one row: the prefix, then the fast answer and the simplification as two branches that do not see each
other. A token's position is its place, so both branches stand where they would stand alone. Rows of one length make a
shard. A step trains on a few shards, one per core. Their gradients are averaged in a fixed order, so that the result
does not depend on the number of threads. Learning rates are the peaks of `TrainerConfig` (`config/trainer.py`) times
`schedule`, the warm-up and decay of a cycle.

In the shape descriptions B is the rows of a shard, N the digits, T the tokens of a row, C the supervised tokens and P
the parameters of the model.
"""

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from sector.engine.config import TrainerConfig
from sector.engine.errors import Diverged
from sector.engine.language.rows import move
from sector.engine.models.checkpoint import (
    Model,
    trained_parameters,
    weights_sha256,
)
from sector.engine.models.text import TextModel
from sector.engine.samplers.cuda_graphs import CudaCapture
from sector.engine.spans import span
from sector.engine.threads import num_cores, one_thread
from sector.engine.training import average, text_rows
from sector.engine.training.accumulation import MeanGradient, added_up
from sector.engine.training.data_parallel import Gradient, Ranks
from sector.engine.training.few_kernels import why_eager
from sector.engine.training.graphs import GraphedUpdate, graphed_gradients
from sector.engine.training.joined_rows import join
from sector.engine.training.laid_out_steps import DrawExamples, laid_out_steps
from sector.engine.training.muon import Muon
from sector.engine.training.place_rows import Rows
from sector.engine.training.precision import flat_gradient, working_model
from sector.engine.training.recompute import recomputing
from sector.engine.training.shard import Fixed, Shard

_MUON_STATE = ("momentum_buffer",)
_ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass(slots=True)
class TrainState:
    """State of a training cycle.

    model: the model in training.
    muon: optimizer of the matrices of the blocks (about a third fewer steps than AdamW, log.md); None if AdamW trains
        all weights.
    adamw: optimizer of embeddings, head and norms; of all weights without `muon`.
    average: moving average of the parameters that are trained; None if there is none.
    step: steps done in this cycle.
    tokens: tokens trained on so far, earlier cycles included.
    """

    model: Model
    muon: Muon | None
    adamw: torch.optim.AdamW
    average: list[Tensor] | None = None
    step: int = 0
    tokens: int = 0

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """All optimizers of the model."""
        return [self.muon, self.adamw] if self.muon else [self.adamw]


def start_training(model: Model, config: TrainerConfig, tokens: int = 0) -> TrainState:
    """Return a state with new optimizers over the model's parameters. Norms have no weight decay.

    tokens: tokens trained on in earlier cycles.
    """
    parameters = trained_parameters(model)
    norms = [parameter for parameter in parameters if parameter.ndim == 1]
    inner, outer = model.matrices()
    muon = None
    if config.optimizer == "muon" or (config.optimizer == "auto" and not isinstance(model, TextModel)):
        muon = Muon(inner, lr=_rate(config.muon_learning_rate, model.device), weight_decay=config.weight_decay)
    else:
        outer = [parameter for parameter in parameters if parameter.ndim > 1]
    adamw = torch.optim.AdamW(
        [{"params": outer, "weight_decay": config.weight_decay}, {"params": norms, "weight_decay": 0.0}],
        lr=_rate(config.learning_rate, model.device),
        betas=(config.beta1, config.beta2),
        fused=True,
        capturable=model.device.type == "cuda",
    )
    averaged = average.new_average(parameters) if config.average else None
    return TrainState(model, muon, adamw, averaged, tokens=tokens)


def _rate(rate: float, device: torch.device) -> float | Tensor:
    """Return a learning rate in the form that an optimizer on a device takes: on a GPU a tensor, for graphs."""
    return rate if device.type == "cpu" else torch.tensor(rate, device=device)


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """Return weights, their average and optimizer moments by name: the state of a training, except for its step."""
    tensors = {f"model.{name}": tensor.detach() for name, tensor in state.model.trained_weights().items()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in state.model.named_parameters()}
    for optimizer in state.optimizers:
        for parameter, moments in optimizer.state.items():
            for moment, value in moments.items():
                tensors[f"{moment}.{names[parameter]}"] = value
    if state.average:
        for parameter, averaged in zip(trained_parameters(state.model), state.average, strict=True):
            tensors[f"average.{names[parameter]}"] = averaged
    return tensors


def restore(state: TrainState, tensors: dict[str, Tensor], step: int) -> None:
    """Restore the weights and moments of `state_tensors`, saved after `step` steps. At step 0 there are no moments."""
    with torch.no_grad():
        for name, tensor in state.model.trained_weights().items():
            tensor.copy_(tensors[f"model.{name}"])
    state.step = step
    names: dict[Tensor, str] = {parameter: name for name, parameter in state.model.named_parameters()}
    if state.average:
        for parameter, averaged in zip(trained_parameters(state.model), state.average, strict=True):
            averaged.copy_(tensors[f"average.{names[parameter]}"])
    for optimizer in state.optimizers if step else ():
        moments = _MUON_STATE if optimizer is state.muon else _ADAMW_STATE
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter] = {
                    moment: tensors[f"{moment}.{names[parameter]}"].to(parameter.device) for moment in moments
                }


def train_cycle(
    state: TrainState,
    draw_examples: DrawExamples,
    config: TrainerConfig,
    num_steps: int,
    seed: int,
    ranks: Ranks | None = None,
) -> Iterator[tuple[int, float]]:
    """Train from `state.step` to `num_steps`, and yield (steps done, loss in nats per token) after each step.

    draw_examples: function that returns the examples of a step, one item per shard. Its draws must depend on the step
        alone.
    ranks: processes that share the shards of a step; None if this process works alone.

    Raise Diverged if the loss or the gradient is not finite, before the weights change.
    """
    parameters = trained_parameters(state.model)
    gradient = _one_gradient(parameters)
    mean = MeanGradient(gradient, config.num_shards, _wave(state.model, config), ranks)
    state.model.train()

    steps = laid_out_steps(state.model, draw_examples, range(state.step, num_steps), config, seed)
    with _computing(state, config) as compute, one_thread():
        shards, following = next(steps, []), list[Shard]()

        def lay_out_next() -> None:
            # The next step is laid out while cores, or the GPU, work on this one.
            following[:] = next(steps, [])

        while state.step < num_steps:
            with span("distill step"):
                _set_rates(state, config, schedule(state.step, num_steps, config))
                num_tokens = sum(shard.num_tokens for shard in shards)
                loss = mean.take(shards, compute.gradients, lay_out_next)
                with span("exchange"):
                    norm = _clip(gradient, config.clip_norm)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise Diverged(f"the loss is {loss} and the norm of its gradient {norm} at step {state.step}")
                with span("optimizer"):
                    compute.update()
                    _move_average(state, parameters, config.average)
            state.step, state.tokens, shards = state.step + 1, state.tokens + num_tokens, list(following)
            yield state.step, loss
    if state.average:
        average.take_over(state.average, parameters)
    state.model.eval()
    mean.close(weights_sha256(state.model) if ranks else "")


def _move_average(state: TrainState, parameters: Sequence[Tensor], decay: float) -> None:
    """Move the average of the weights, if there is one, after an update of the weights."""
    if state.average:
        average.follow(state.average, parameters, decay, state.step + 1)


def _wave(model: Model, config: TrainerConfig) -> int | None:
    """Return the shards whose gradients are held at the same time; None for all."""
    if not config.micro_batch:
        return None
    return num_cores() if model.device.type == "cpu" else 1


def _one_gradient(parameters: Sequence[torch.nn.Parameter]) -> Tensor:
    """Return a vector `[P]` for the gradient of all parameters; each parameter's `.grad` becomes a view of it."""
    gradient = torch.cat([torch.zeros_like(parameter).flatten() for parameter in parameters])
    parts = gradient.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    return gradient


def _clip(gradient: Tensor, max_norm: float) -> float:
    """Scale a gradient in place to a norm of at most `max_norm`, and return the norm before."""
    norm = gradient.norm().item()
    if norm > max_norm:
        gradient.mul_(max_norm / norm)
    return norm


def _set_rates(state: TrainState, config: TrainerConfig, share: float) -> None:
    """Set every learning rate to a share of its peak."""
    for optimizer in state.optimizers:
        peak = config.muon_learning_rate if optimizer is state.muon else config.learning_rate
        for group in optimizer.param_groups:
            # A graph reads the rate from a tensor.
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(share * peak)
            else:
                group["lr"] = share * peak


def schedule(step: int, num_steps: int, config: TrainerConfig) -> float:
    """Return the share of the peak learning rate: linear warm-up, and linear decay to `final_rate` over the cycle."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warmup * (1 - (1 - config.final_rate) * step / num_steps)


def tune_allocator() -> None:
    """Keep large temporaries on the heap: glibc would map new pages for each (half of the time, measured)."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    m_trim_threshold, m_mmap_threshold, one_gib = -1, -3, 1 << 30
    libc.mallopt(m_mmap_threshold, one_gib)
    libc.mallopt(m_trim_threshold, one_gib)


def _gradient_of(model: Model, parameters: list[torch.nn.Parameter], shard: Shard, fast_weight: float) -> Gradient:
    """Return the mean loss and gradient of a shard."""
    loss, parts = _parts_of(model, parameters, shard, fast_weight)
    return Gradient(loss, flat_gradient(parts))


def _parts_of(
    model: Model, parameters: list[torch.nn.Parameter], shard: Shard, fast_weight: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the mean loss of a shard, and the gradient of each parameter.

    `.grad` is left alone, so that shards can run in parallel.
    """
    with span("forward"):
        loss = shard.loss(model, fast_weight)
    with span("backward"):
        return loss.detach(), torch.autograd.grad(loss, parameters)


@dataclass(frozen=True, slots=True)
class _Compute:
    """The computation of a step on a device.

    gradients: function from shards on the CPU to their gradients, in the same order.
    update: updates all weights by the gradient.
    """

    gradients: Callable[[Sequence[Shard]], Iterable[Gradient]]
    update: Callable[[], None]


@contextmanager
def _computing(state: TrainState, config: TrainerConfig) -> Iterator[_Compute]:
    """Yield how to compute steps: with threads on a CPU, with CUDA graphs on a GPU; some models of text without."""
    working, fast_weight = working_model(state.model, config.precision), config.fast_weight
    model, parameters = working.model, trained_parameters(working.model)

    def gradient_of(shard: Shard) -> Gradient:
        if not config.micro_batch:
            return _gradient_of(model, parameters, shard, fast_weight)
        assert isinstance(shard, text_rows.TextRows), "only shards of text have pieces"
        pieces = shard.pieces(config.micro_batch, fast_weight)
        return added_up(pieces, parameters, partial(_parts_of, model, parameters))

    def update() -> None:
        for optimizer in state.optimizers:
            optimizer.step()
        working.refresh()

    with recomputing(model) if config.recompute else nullcontext():
        if model.device.type == "cpu":
            # One thread per core, and each thread uses one core: small matrices gain nothing from two.
            with ThreadPoolExecutor(num_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield _Compute(lambda shards: pool.map(gradient_of, shards), update)
            return
        graphed_update = GraphedUpdate(state.optimizers, CudaCapture(model.device, warm_ups=0), working.refresh)
        if isinstance(model, TextModel) and why_eager(model, config):
            # A list, because `map` would compute nothing before the next step is laid out.
            yield _Compute(
                lambda shards: [gradient_of(move(shard, model.device)) for shard in shards], graphed_update.step
            )
            return
        graphs = graphed_gradients(model, fast_weight)
        yield _Compute(
            lambda shards: [graphs.gradient_of(model, _fixed(shard)) for shard in shards], graphed_update.step
        )


def _fixed(shard: Shard) -> Fixed:
    """Return a shard as graphs compute it."""
    return join(shard) if isinstance(shard, text_rows.TextRows) else cast(Rows, shard)
