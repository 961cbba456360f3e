"""Settings of a round of self-training."""

from typing import Annotated, Literal

from pydantic import Field

from sector.engine.config.trainer import RoundTrainerConfig
from sector.engine.config.values import MAX_DIGITS, Count, CountOrNone, Decay, Settings, Share


class RoundConfig(Settings):
    """Settings of a round of self-training: generate, filter, distill, advance."""

    candidates: Count = 1000
    """Problems that a round tries. More give more examples and take longer."""
    pool: Annotated[int, Field(ge=1, le=1000)] = 8
    """Problems drawn for each candidate. Problems on which the fast policy contradicts itself are preferred, for up to
    half of the candidates. 1 tries problems as they are drawn."""
    teacher: Literal["last", "supervised", "slow"] = "last"
    """Weights that generate the examples: those of the phase before, always those of the supervised phase (a baseline
    of one-shot distillation), or a moving average of the weights after all phases before."""
    teacher_decay: Decay = 0.5
    """Share of the earlier average in the next one, for the teacher `slow`. Raise it for a slower teacher."""
    cycle_steps: Count = 320
    """Training steps per cycle. A round trains cycle after cycle until its targets are met."""
    max_cycles: Count = 5
    """Largest number of cycles of a round, whether or not its targets are met."""
    replay_share: Share = 0.5
    """Share of the shards that repeat examples of earlier phases. Raise it if the model forgets trained lengths."""
    restated: bool = True
    """Whether to train on accepted examples also in their equivalent forms: for sums, `b+a` and the nines'
    complements."""
    missed_turns: bool = True
    """Whether every second shard of new examples holds only those whose fast answer differed from the vote."""
    probe: Count = 150
    """Problems one digit further on which agreement is measured after each cycle. More measure it better."""
    target_agreement: Share = 0.85
    """Agreement one digit further that ends a round's training."""
    probe_trained: CountOrNone = 40
    """Problems per trained length on which agreement is measured after each cycle. 0 turns this off, and with it the
    rollback of rounds."""
    probe_lengths: CountOrNone = 6
    """Trained lengths on which agreement is measured, drawn anew for each cycle. If one of them is in doubt, all are
    measured. 0 always measures all."""
    target_trained: Share = 0.8
    """Agreement that every measured trained length must reach before a round's training ends."""
    max_fall: Share = 0.25
    """Largest fall of agreement at trained lengths below its highest value. A round that falls further is rolled back
    and tried again with other problems, at most three times. 1 rolls nothing back."""
    max_leap: Annotated[int, Field(ge=1, le=MAX_DIGITS)] = 5
    """Largest step to the next round, in digits. The step is doubled, up to this, while agreement there is at least
    `leap_agreement`. 1 is the paper's schedule, one digit per round."""
    leap_agreement: Share = 0.7
    """Agreement that a length needs to become the next round, if it is more than one digit further."""
    min_agreement: Share = 0.3
    """Agreement one digit further below which the run stops with exit code 3."""
    trainer: RoundTrainerConfig = RoundTrainerConfig()
    """Training settings of a round."""
