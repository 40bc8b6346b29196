"""A diffusers pipeline as the teacher: what its stage leaves in models/teacher, and how the stages
after it open it.

There are its prompts, the user's adapters and a card, but no weights of its own: those stay where
they are, and the card has their hash.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from boss_core.errors import InputError
from flows import paths
from flows.config import Params
from flows.records.json_files import read_json
from flows.records.teachers import CARD
from flows.stages.runner import device
from flows.straighten.request import PipelineRequest, Teacher, Training
from flows.straighten.teacher import PipelineTeacher, load_teacher

PROMPTS, LORA = "prompts", "lora"  # folders in models/teacher

# What the functions behind the commands call by the name of an option.
_OPTIONS = {
    "--pipeline": "teacher.path (or teacher.pipeline.hub)",
    "--prompts": "teacher.pipeline.prompts",
    "--guidance": "teacher.pipeline.guidance",
    "--size": "teacher.pipeline.size",
    "--call": "teacher.pipeline.call",
    "--dtype": "teacher.pipeline.dtype",
    "--lora": "teacher.pipeline.lora",
    "--gradient-checkpointing": "teacher.pipeline.gradient_checkpointing",
    "--rank": "finetune.lora_rank",
    "--full": "finetune.methods without boss_lora",
    "--objective": "schedule.objective",
}


@dataclass(frozen=True)
class PipelineCard:
    """What the teacher's stage found.

    asked: the pipeline, and how it is called. gradient_checkpointing: in training. weights_sha256:
    of all its networks, the user's adapters included. image_shape: of a sample, (3, H, W).
    frames: of a film; 1 of an image.
    """

    asked: Teacher
    gradient_checkpointing: bool
    weights_sha256: str
    image_shape: tuple[int, ...]
    frames: int


def read_card() -> PipelineCard:
    """That of models/teacher; InputError where it is not there, or is none of a pipeline."""
    found = read_json(CARD)
    try:
        asked = dict(found["asked"])
        asked |= {"prompts": Path(asked["prompts"])}
        asked |= {"call": tuple(asked["call"]), "lora": tuple(asked["lora"])}
        return PipelineCard(
            Teacher(**asked),
            bool(found["gradient_checkpointing"]),
            str(found["weights_sha256"]),
            tuple(found["image_shape"]),
            int(found["frames"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{CARD}: not the card of a pipeline; remove it, and `dvc repro` brings it back"
        ) from error


def request(
    params: Params, asked: Teacher, *, batch_size: int, rank: int | None, checkpointing: bool
) -> PipelineRequest:
    """What ``boss straighten`` would be asked for. rank: of what is trained; None trains all
    weights, and asks nothing of the pipeline. batch_size: samples in one call."""
    training = params.finetune.training
    return PipelineRequest(
        teacher=asked,
        training=Training(
            rank=rank,
            trajectories=params.trajectories.samples,
            held_out=params.evaluate.samples,
            batch_size=batch_size,
            accumulate=max(1, training.batch_size // batch_size),
            iterations=training.iterations,
            learning_rate=training.learning_rate,
            checkpointing=checkpointing,
        ),
        budgets=(2,),  # all that is done with them: two steps are tried, as everywhere
        grid=params.cost.grid,
        steps="search",
        solver="euler",
        samples=None,
        seed=params.seed,
        device=params.device,
        replace=False,
        out=Path("build"),
    )


def open_teacher(
    params: Params, *, batch_size: int, rank: int | None = None, trains: bool = False
) -> tuple[PipelineTeacher, PipelineRequest]:
    """The pipeline of models/teacher, on its device; InputError where its weights are others by
    now. trains: gradients are needed of it."""
    card = read_card()
    asked = request(
        params, card.asked, batch_size=batch_size, rank=rank,
        checkpointing=trains and card.gradient_checkpointing,
    )  # fmt: skip
    teacher = load(params, asked)
    if teacher.hash != card.weights_sha256:
        raise InputError(
            f"{card.asked.source}: other weights than those that the teacher's stage has seen;"
            f" these again needed, or the stage run again (remove {paths.TEACHER})"
        )
    return teacher, asked


def load(params: Params, asked: PipelineRequest) -> PipelineTeacher:
    """The pipeline that is asked for, ready to be sampled and trained."""
    device(params)  # from here on torch gives the same bits run after run, as far as it can:
    torch.use_deterministic_algorithms(True, warn_only=True)  # pipelines take any operation
    with as_parameters():
        return load_teacher(asked)


@contextmanager
def as_parameters(**others: str) -> Iterator[None]:
    """What is refused as an option, as the parameter that it comes from. others: more of them, as
    ``batch_size="cost.batch_size"``."""
    names = _OPTIONS | {f"--{k.replace('_', '-')}": name for k, name in others.items()}
    try:
        yield
    except InputError as error:
        text = str(error)
        said = re.sub(r"--[a-z]+(-[a-z]+)*", lambda m: names.get(m.group(), m.group()), text)
        of_file = any(text.startswith(f"{option}:") for option in names)
        raise InputError(f"params.yaml: {said}" if of_file else said) from error


def call_texts(call: dict[str, Any]) -> tuple[str, ...]:
    """The arguments of params.yaml as `flows.search.pipeline_call.call_arguments` reads them."""
    return tuple(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in call.items()
    )
