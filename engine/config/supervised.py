"""Settings of the supervised phase."""

from typing import Annotated

from pydantic import Field

from sector.engine.config.trainer import TrainerConfig
from sector.engine.config.values import MAX_DIGITS, Count, Settings, Share


class SupervisedConfig(Settings):
    """Settings of the supervised phase, which trains on 1 to `max_digits` digits with true answers."""

    max_digits: Annotated[int, Field(ge=2, le=MAX_DIGITS)] = 6
    """Digits of the longest problems with true answers. The rounds start one digit further."""
    cycle_steps: Count = 1600
    """Training steps of the first cycle. Raise it for larger models."""
    more_steps: Count = 400
    """Training steps of each further cycle, which is run if the targets are not met."""
    curriculum_share: Share = 0.2
    """Share of the first cycle in which the longest length grows from 1 to `max_digits`. 0 starts with all lengths."""
    max_cycles: Count = 6
    """Largest number of cycles; after that the rounds start even if the targets are not met."""
    target_accuracy: Share = 0.98
    """Accuracy of the fast and slow policy, at every supervised length, that ends the phase."""
    target_agreement: Share = 0.9
    """Agreement one digit further that ends the phase. Raise it for a stronger start."""
    examples: Count = 1000
    """Examples with true answers per length that are kept for replay in later rounds."""
    trainer: TrainerConfig = TrainerConfig()
    """Training settings of the supervised phase."""
