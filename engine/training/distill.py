"""The lightweight trainer: teaches the model to give at once what it worked out slowly (SECToR section 3.3).

An example is one row: the prefix is read once, the fast answer and the simplification follow it, and neither sees the
other (a token's position is its place, so both stand where they would stand alone). Rows of one length make a shard; a
step is a few shards, each on a core of its own, whose gradients are averaged in a fixed order, so that the result does
not depend on the number of threads.

In the shape descriptions B is the rows of a shard, N the digits, T the tokens of a row, C the supervised tokens.
"""

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine.config import TrainerConfig
from sector.engine.errors import Diverged
from sector.engine.language import tokens
from sector.engine.language.examples import Examples
from sector.engine.language.layout import Mode
from sector.engine.models.checkpoint import Model, task_and_layout, weights, weights_sha256
from sector.engine.models.sector import MAX_GAP, SectorForCausalLM
from sector.engine.models.text import TextModel
from sector.engine.seeding import generator
from sector.engine.spans import span
from sector.engine.tasks import task_of
from sector.engine.threads import num_cores, one_thread
from sector.engine.training import text_rows as text_rows
from sector.engine.training.data_parallel import Gradient, Ranks
from sector.engine.training.fused_model import branch_states
from sector.engine.training.muon import Muon

_IGNORE = -100
_MUON_STATE = ("momentum_buffer",)
_ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")


class Shard(Protocol):
    """Examples laid out for a model of some kind: `Rows` for one of ours, `text.rows.TextRows` for one of text."""

    @property
    def num_tokens(self) -> int:
        """Read in a forward pass."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same where the model lies."""
        ...

    def loss(self, model: Any, fast_weight: float) -> Tensor:
        """Mean loss in nats a token, fast and slow weighed against each other."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """A shard laid out for one forward pass.

    ids: `[B, T]` prefix, then `=` and the answer, then `>` and the simplification (ends are predicted, not read).
    places: `[B, T]` rotary positions, augmented.
    targets: `[B, C]` classes to predict from the last C tokens, -100 where no loss is taken.
    answer_length: the first so many of the C belong to the fast answer, the others to the simplification; 0 where no
        direct answer is taught.
    """

    ids: Tensor
    places: Tensor
    targets: Tensor
    answer_length: int

    def to(self, device: torch.device) -> "Rows":
        """The same where the model lies."""
        ids, places, targets = (each.to(device) for each in (self.ids, self.places, self.targets))
        return Rows(ids, places, targets, self.answer_length)

    @property
    def num_tokens(self) -> int:
        """See `Shard`."""
        return self.ids.numel()

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens of the prefix, the fast answer and the simplification."""
        supervised = self.targets.shape[1]
        return self.ids.shape[1] - supervised, self.answer_length, supervised - self.answer_length

    def loss(self, model: SectorForCausalLM, fast_weight: float) -> Tensor:
        """See `Shard`."""
        prefix, *lengths = self.lengths
        hidden = branch_states(model, self.ids, self.places, self.lengths)
        logits = model.class_logits(hidden, self.ids[:, prefix:])
        fast, slow = logits.split(lengths, dim=1)
        fast_targets, slow_targets = self.targets.split(lengths, dim=1)
        losses = [
            F.cross_entropy(part.flatten(0, 1), wanted.flatten(), ignore_index=_IGNORE)
            for part, wanted in ((fast, fast_targets), (slow, slow_targets))
            if part.shape[1]
        ]
        return losses[0] if len(losses) == 1 else fast_weight * losses[0] + (1 - fast_weight) * losses[1]


@dataclass(slots=True)
class TrainState:
    """Everything a cycle needs to go on: the model, its optimizers, the step, and the tokens seen so far.

    muon: for the matrices of the blocks (about a third fewer steps than AdamW, LOG.md). None for a model of text, which
        AdamW has trained so far.
    adamw: for embeddings, head and norms; for all of a model of text.
    """

    model: Model
    muon: Muon | None
    adamw: torch.optim.AdamW
    step: int = 0
    tokens: int = 0

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.muon, self.adamw] if self.muon else [self.adamw]


Batches = Callable[[int], Sequence[Examples]]


def start_training(model: Model, config: TrainerConfig, tokens: int = 0) -> TrainState:
    """Fresh optimizers over the model's own parameters; norms are not decayed. `tokens`: seen in earlier cycles."""
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    outer: list[Tensor]
    muon = None
    if isinstance(model, TextModel):
        outer = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    else:
        inner = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
        outer = [model.embed.weight, model.head.weight]
        muon = Muon(inner, lr=config.muon_learning_rate, weight_decay=config.weight_decay)
    adamw = torch.optim.AdamW(
        [{"params": outer, "weight_decay": config.weight_decay}, {"params": norms, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    return TrainState(model, muon, adamw, tokens=tokens)


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """Weights and the optimizers' moments by name: all that a training goes on from, but for where it stands."""
    tensors = {f"model.{name}": tensor.detach() for name, tensor in weights(state.model).items()}
    names: dict[Any, str] = {parameter: name for name, parameter in state.model.named_parameters()}
    for optimizer in state.optimizers:
        for parameter, moments in optimizer.state.items():
            for moment, value in moments.items():
                tensors[f"{moment}.{names[parameter]}"] = value
    return tensors


def restore(state: TrainState, tensors: dict[str, Tensor], step: int) -> None:
    """Go on from `state_tensors` after so many steps; before the first one there are no moments."""
    with torch.no_grad():
        for name, tensor in weights(state.model).items():
            tensor.copy_(tensors[f"model.{name}"])
    state.step = step
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    for optimizer in state.optimizers if step else ():
        moments = _MUON_STATE if optimizer is state.muon else _ADAMW_STATE
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                saved = {moment: tensors[f"{moment}.{names[parameter]}"].to(parameter.device) for moment in moments}
                optimizer.state[parameter] = saved


def train_cycle(
    state: TrainState,
    batches: Batches,
    config: TrainerConfig,
    num_steps: int,
    seed: int,
    ranks: Ranks | None = None,
) -> Iterator[tuple[int, float]]:
    """Train from `state.step` to `num_steps`, yielding (steps done, loss in nats a token) after every step.

    `batches(step)` gives the shards of a step; what it draws must depend on the step alone. ranks: processes that share
    them. Raises Diverged when the loss or the gradient is not finite, before the weights take that step.
    """
    parameters = list(state.model.parameters())
    gradient = _one_gradient(parameters)
    exchange = ranks.exchange(gradient, config.num_shards) if ranks else None
    state.model.train()

    def work_on(shard: Shard) -> Gradient:
        return _gradient_of(state.model, parameters, shard, config.fast_weight)

    with _pool() as pool, one_thread():
        shards = _lay_out_step(state.model, batches, state.step, config, seed) if state.step < num_steps else []
        while state.step < num_steps:
            step = state.step
            with span("distill step"):
                _set_rates(state, config, schedule(step, num_steps, config))
                num_tokens = sum(shard.num_tokens for shard in shards)
                working = pool.map(work_on, exchange.share(shards) if exchange else shards)
                # The next step is laid out while cores work on this one.
                if step + 1 < num_steps:
                    shards = _lay_out_step(state.model, batches, step + 1, config, seed)
                results = list(working)
                with span("exchange"):
                    if exchange:
                        results = exchange.gather(results)
                    loss = sum(each.loss for each in results) / len(results)
                    torch.mean(torch.stack([each.flat for each in results]), dim=0, out=gradient)
                    norm = _clip(gradient, config.clip_norm)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise Diverged(f"the loss is {loss} and the norm of its gradient {norm} at step {step}")
                with span("optimizer"):
                    for optimizer in state.optimizers:
                        optimizer.step()
                state.step, state.tokens = step + 1, state.tokens + num_tokens
            yield state.step, loss
    state.model.eval()
    if exchange:
        exchange.close(weights_sha256(state.model))


def _one_gradient(parameters: Sequence[torch.nn.Parameter]) -> Tensor:
    """A vector `[P]` for the gradient of all parameters, and every parameter's `.grad` a view of it."""
    gradient = torch.cat([torch.zeros_like(parameter).flatten() for parameter in parameters])
    parts = gradient.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    return gradient


def _clip(gradient: Tensor, most: float) -> float:
    """Scale a gradient down, in place, to a norm of `most` if it is larger; returns the norm that it had."""
    norm = gradient.norm().item()
    if norm > most:
        gradient.mul_(most / norm)
    return norm


def _set_rates(state: TrainState, config: TrainerConfig, share: float) -> None:
    """Set every learning rate to a share of its peak."""
    for optimizer in state.optimizers:
        peak = config.muon_learning_rate if optimizer is state.muon else config.learning_rate
        for group in optimizer.param_groups:
            group["lr"] = share * peak


def schedule(step: int, num_steps: int, config: TrainerConfig) -> float:
    """Share of the peak learning rate: linear warm-up, then linear decay to `final_rate` at the end of the cycle."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warmup * (1 - (1 - config.final_rate) * step / num_steps)


def _lay_out_step(model: Model, batches: Batches, step: int, config: TrainerConfig, seed: int) -> list[Shard]:
    """The shards of a step, where the model lies."""
    with span("lay out"):
        draws = generator(seed, "augment", step)
        return [_lay_out(model, examples, config, draws).to(model.device) for examples in batches(step)]


def _lay_out(model: Model, examples: Examples, config: TrainerConfig, draws: torch.Generator) -> Shard:
    """A shard as that kind of model reads it."""
    if isinstance(model, TextModel):
        return text_rows.lay_out(examples, task_and_layout(model)[1])
    return lay_out(examples, model.config.digit_order, config, draws)


def lay_out(examples: Examples, order: str, config: TrainerConfig, draws: torch.Generator) -> Rows:
    """Examples of one length as one shard, each row in a random variant of start marks and with a random gap."""
    count = len(examples)
    variant = torch.randint(0, tokens.NUM_SHIFTS, (count,), generator=draws)
    task = task_of(examples.problems)
    layout = task.layout(order).shifted(variant)
    prefix = layout.prefix_ids(examples.problems)
    segments, targets = [prefix], [prefix[:, :0]]
    if task.answers_at_once(examples.problems):
        answer = layout.answer_ids(examples.answers)
        segments += [layout.mark_ids(Mode.ANSWER, count), answer[:, :-1]]
        targets = [answer]
    if not examples.rest.is_nothing:
        simplification = layout.simplification_ids(examples.rest, examples.digit)
        segments += [layout.mark_ids(Mode.THINK, count), simplification[:, :-1]]
        targets.append(simplification)
    ids, target_ids = torch.cat(segments, dim=1), torch.cat(targets, dim=1)
    shift = torch.tensor(tokens.SHIFTS)[variant].unsqueeze(1)
    column, gap = _draw_gaps(count, max(1, examples.problems.answer_width - 1), config, draws)
    places = _with_gap(ids, column + shift, gap)
    target_places = _with_gap(target_ids, column + shift, gap)
    # A token that follows its predecessor across the gap has no neighbour to copy from: no loss there.
    source = places[:, prefix.shape[1] :]
    across = (source > 0) & (target_places > source + 1)
    return Rows(
        ids,
        places,
        tokens.class_of(target_ids).masked_fill(across, _IGNORE),
        targets[0].shape[1],
    )


def tune_allocator() -> None:
    """Keep large temporaries on the heap: on glibc each would cost fresh pages (half of the time, measured)."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    m_trim_threshold, m_mmap_threshold, one_gib = -1, -3, 1 << 30
    libc.mallopt(m_mmap_threshold, one_gib)
    libc.mallopt(m_trim_threshold, one_gib)


def _draw_gaps(count: int, columns: int, config: TrainerConfig, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each row a column `[B, 1]` and how many places `[B, 1]` everything behind it moves away.

    The distance of digits that are not neighbours then carries no information, so that nothing is learned about
    "six digits from the end", which no longer holds at seven. Column 0 moves the digits away from the marks.
    """
    column = torch.randint(0, columns, (count, 1), generator=draws)
    gap = torch.randint(0, MAX_GAP + 1, (count, 1), generator=draws)
    return column, gap * (torch.rand(count, 1, generator=draws) < config.gap_share)


def _with_gap(ids: Tensor, column: Tensor, gap: Tensor) -> Tensor:
    """Places of ids `[B, T]` with everything behind the column moved by the gap; marks stay at 0."""
    places = tokens.place_of(ids)
    return places + gap * ((places > column) & (places > 0))


def _gradient_of(model: Model, parameters: list[torch.nn.Parameter], shard: Shard, fast_weight: float) -> Gradient:
    """Mean loss of a shard and its gradient, apart from `.grad`, so that shards can run side by side."""
    with span("forward"):
        loss = shard.loss(model, fast_weight)
    with span("backward"):
        parts = torch.autograd.grad(loss, parameters)
        return Gradient(loss.item(), torch.cat([part.flatten() for part in parts]))


def _pool() -> ThreadPoolExecutor:
    """One thread a core, each running its operations alone: small matrices do not gain from two cores at once."""
    return ThreadPoolExecutor(num_cores(), initializer=torch.set_num_threads, initargs=(1,))
