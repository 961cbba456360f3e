"""Settings of training, in the supervised phase and in rounds."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from sector.engine.config.values import MAX_DIGITS, CountOrNone, Decay, Rate, Settings, Share, as_tuple

Precision = Literal["float32", "bfloat16"]


class TrainerConfig(Settings):
    """Settings of training: optimizers, learning rates, batch size and augmentation (`distill.py`)."""

    learning_rate: Rate = 4e-3
    """Peak learning rate of AdamW in each cycle, for embeddings, head and norms. Lower it if the loss diverges."""
    muon_learning_rate: Rate = 0.02
    """Peak learning rate of Muon in each cycle, for the weight matrices of the blocks. Lower it if the loss
    diverges."""
    fast_weight: Share = 0.6
    """Weight of the fast answer in the loss; the simplification gets the rest. Raise it if fast answers lag behind."""
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = 0.1
    """Weight decay of the matrices. Keep it near 0.1: at 0.01 the model does not generalise to one more digit."""
    beta1: Decay = 0.9
    """Decay of AdamW's first moment. Rarely changed."""
    beta2: Decay = 0.98
    """Decay of AdamW's second moment. Rarely changed."""
    warmup_steps: CountOrNone = 100
    """Steps of linear warm-up at the start of each cycle. Raise it if the loss jumps at the start."""
    final_rate: Share = 0.05
    """Learning rate at the end of a cycle, as a share of its peak. A low value helps one more digit to work."""
    clip_norm: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Largest norm of the gradient; larger ones are scaled down. Lower it if the loss jumps."""
    optimizer: Literal["auto", "muon", "adamw"] = "auto"
    """Optimizer of the weight matrices of the blocks. auto: AdamW for models of text, Muon for others. The presets
    `text-tiny` and `text-base` take Muon by default."""
    gap_share: Share = 0.5
    """Share of training rows whose digit positions have a random gap, so that longer numbers work later. 0 turns it
    off."""
    max_gap: Annotated[int, Field(ge=0, le=MAX_DIGITS)] = 30
    """Widest gap, in places. Raise it for leaps to much longer numbers: a model is lost where its digits are further
    apart than it has ever seen."""
    zeros: Annotated[int, Field(ge=0, le=MAX_DIGITS)] = 0
    """Most zeros in front of the numbers of a training shard; each shard draws its own number. A model of text then
    does not learn where numbers end by their count of digits. Other models learn the lengths that a leap left out."""
    num_shards: Annotated[int, Field(ge=1, le=1024)] = 4
    """Shards per training step. Each holds problems of one length and is computed by one core or process."""
    shard_rows: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Problems per shard. With `num_shards` it gives the batch size."""
    precision: Precision = "float32"
    """Number type of the forward and the backward pass. Weights, loss, averaged gradient and optimizers stay float32.
    Choose bfloat16 on a GPU for large models, such as `base` and pretrained ones."""
    average: Decay = 0.0
    """Decay of an exponential moving average of the weights, for example 0.999; 0 turns it off. The average takes the
    place of the weights at the end of each cycle, so it is measured, generates examples and is saved."""
    micro_batch: Annotated[int, Field(ge=0, le=65_536)] = 0
    """Problems of a shard in one forward pass of a model of text; gradients are added up (gradient accumulation). 0
    passes a whole shard. Choose a small number if memory runs out: the gradients of shards are then not held, either.
    """
    recompute: bool = False
    """Whether a model of text keeps only the inputs of its layers for the backward pass, and computes the rest again
    (gradient checkpointing). It needs less memory and about a third more time; the weights stay the same."""
    lora_rank: Annotated[int, Field(ge=0, le=4096)] = 0
    """Rank of an adapter (LoRA) that is trained in the place of the weights of a pretrained model; 0 trains the
    weights. It needs the extra `lora`, is equal in both phases, and raises the default learning rates ten times."""
    lora_targets: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    """Names of the matrices that the adapter adapts, such as `q_proj` and `v_proj`. None stands for all matrices of the
    blocks."""

    @field_validator("lora_targets")
    @classmethod
    def _check_targets(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not re.fullmatch(r"\w+", name):
                raise ValueError(f"{name!r} is no name of a matrix; write it as q_proj")
        return names


class RoundTrainerConfig(TrainerConfig):
    """Settings of a round's training: lower learning rates, and more lengths per step, so that less is forgotten.

    A class of its own, so that a config that sets one of them keeps the other defaults of a round.
    """

    learning_rate: Rate = 2e-3
    """Peak learning rate of AdamW in each cycle, for embeddings, head and norms. Lower it if rounds are rolled back."""
    muon_learning_rate: Rate = 0.01
    """Peak learning rate of Muon in each cycle, for the weight matrices. Lower it if rounds are rolled back."""
    warmup_steps: CountOrNone = 10
    """Steps of linear warm-up at the start of each cycle. Raise it if the loss jumps at the start."""
    num_shards: Annotated[int, Field(ge=1, le=1024)] = 8
    """Shards per training step. Each holds problems of one length and is computed by one core or process."""
    shard_rows: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Problems per shard. With `num_shards` it gives the batch size."""
