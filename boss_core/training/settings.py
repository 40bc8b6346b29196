"""Settings shared by the library and the pipeline. Imports no torch, so they check in no time."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["float32", "bfloat16"]
_MOST = 10**9  # of anything that is counted


class Settings(BaseModel):
    """Strict and immutable: an unknown name or a wrong type is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def training_share(samples: int, validation_fraction: float) -> int:
    """How many of so many samples train; the rest, at least one, are for validation."""
    return samples - max(1, round(samples * validation_fraction))


class TrainingSettings(Settings):
    """How `boss_core.training.loop.train` optimises. The defaults live in params.yaml; only
    ``weight_decay`` may be left out."""

    iterations: int = Field(ge=1, le=_MOST, description="optimiser steps")
    batch_size: int = Field(ge=1, le=_MOST, description="samples a step")
    learning_rate: float = Field(gt=0, le=1, description="Adam's peak learning rate")
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        description="after the warm-up: constant, or a cosine down to 0"
    )
    warmup: int = Field(ge=0, le=_MOST, description="steps of linear warm-up")
    gradient_clip: float = Field(gt=0, description="largest L2 norm of the gradient")
    ema_decay: float = Field(ge=0, lt=1, description="decay of the weight average, a step")
    weight_decay: float = Field(
        default=0.0, ge=0, lt=1, description="share of a weight lost a step, in learning rates"
    )


class ComputeSettings(Settings):
    """How networks run, whatever they learn; the defaults live in params.yaml."""

    precision: Precision = Field(description="bfloat16: autocast of training, for GPUs")
    compile: bool = Field(description="torch.compile in training")
    processes: int = Field(
        ge=1, le=1024, description="processes, or GPUs, that train one network together"
    )
    checkpoint_every: int = Field(
        ge=1, le=_MOST, description="steps of a training between checkpoints"
    )
