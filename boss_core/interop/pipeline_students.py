"""Students of a diffusers pipeline: its LoRA, or all its weights, straightened for one schedule."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from boss_core.errors import InputError
from boss_core.interop.pipeline_lora import TrainedWeights
from boss_core.interop.pipeline_networks import attention_layers, pipeline_networks
from boss_core.interop.teacher_forcing import KnotStates, straighten_call
from boss_core.io.files import replacing
from boss_core.ode.schedule import Schedule
from boss_core.training.attention import whole_attention_gradients
from boss_core.training.loop import Row, Trained, train
from boss_core.training.randomness import BatchShare, step_generator
from boss_core.training.resume import Checkpoints
from boss_core.training.settings import TrainingSettings


@dataclass(frozen=True)
class Groups:
    """What a student learns from: groups of samples, of which each is one call of the pipeline.

    call: the arguments of a group's call without guidance. states: the teacher's states of a
    group at the K + 1 knots of the schedule, on the pipeline's device.
    training, validation: the numbers of the groups; none for validation leaves its loss out.
    """

    call: Callable[[int], Mapping[str, Any]]
    states: Callable[[int], KnotStates]
    training: Sequence[int]
    validation: Sequence[int] = ()


def train_student(
    pipeline: Any,
    schedule: Schedule,
    weights: TrainedWeights,
    groups: Groups,
    settings: TrainingSettings,
    *,
    seed: int,
    on_step: Callable[[int], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Trained[TrainedWeights]:
    """Straighten a pipeline for the steps of a schedule (paper, eq. 9), in place: afterwards it
    has the averaged weights.

    weights: those that are trained, of `boss_core.interop.pipeline_lora.add_lora`.
    settings: ``batch_size`` counts groups; more of them in a step than one add up their gradients,
        and several processes share them.
    seed: of the order of the groups. on_step, checkpoints: as for
        `boss_core.training.loop.train`.
    """
    steps = schedule.timesteps, schedule.solver
    layers = attention_layers(pipeline_networks(pipeline))
    fresh = True

    def loss(_: Any, step: int, share: BatchShare) -> Tensor:
        nonlocal fresh
        draw = step_generator(seed, step)
        chosen = [int(i) for i in share.take(_drawn(draw, len(groups.training), settings))]
        weights.push()
        found = []
        for group in (groups.training[number] for number in chosen):
            losses = straighten_call(
                pipeline, *steps, groups.call(group), groups.states(group),
                lambda k: weights.collect(), weights=schedule.weights,
                scale=1.0 / len(chosen), check_start=fresh, layers=layers,
            )  # fmt: skip
            fresh = False
            found.append(losses.mean())
        return torch.stack(found).mean()

    def validate(averaged: TrainedWeights) -> Row:
        averaged.push()
        found = [
            straighten_call(
                pipeline,
                *steps,
                groups.call(group),
                groups.states(group),
                None,
                weights=schedule.weights,
                layers=layers,
            )
            for group in groups.validation
        ]
        means = torch.stack(found).mean(dim=0).tolist()
        return {
            "validation_loss": sum(means) / len(means),
            **{f"validation_loss_segment_{k}": value for k, value in enumerate(means)},
        }

    with _on_one_device(pipeline):
        trained = train(
            weights,
            loss,
            settings,
            validate=validate if groups.validation else None,
            on_step=on_step,
            checkpoints=checkpoints,
            attention=whole_attention_gradients,
        )
    trained.network.push()
    return trained


@contextmanager
def _on_one_device(pipeline: Any) -> Iterator[None]:
    """Inside, the pipeline knows its device. diffusers looks through all modules for it, several
    times a call: a thirtieth of a step of Stable Diffusion 3.5 medium on an H200, which waits."""
    kind = type(pipeline)
    found = pipeline._execution_device
    pipeline.__class__ = type(kind.__name__, (kind,), {"_execution_device": found})
    try:
        yield
    finally:
        pipeline.__class__ = kind


def _drawn(draw: Any, count: int, settings: TrainingSettings) -> Any:
    """The numbers of the groups of a step: none twice where there are enough."""
    return draw.choice(count, size=settings.batch_size, replace=settings.batch_size > count)


def save_states(path: Path, states: KnotStates, metadata: Mapping[str, str]) -> None:
    """Write the states of a group as safetensors, whole or not at all."""
    tensors = {f"states_{k}": s.cpu().contiguous() for k, s in enumerate(states.states)}
    if states.seen is not None:
        tensors["seen"] = states.seen.cpu().contiguous()
    with replacing(path) as temporary:
        save_file(tensors, temporary, dict(metadata))


def load_states(path: Path) -> KnotStates:
    """What `save_states` wrote, on the CPU; InputError for a file that is cut or altered."""
    try:
        tensors = load_file(path)
        found = tuple(tensors[f"states_{k}"] for k in range(len(tensors) - ("seen" in tensors)))
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(
            f"{path}: truncated or altered ({error}); remove it, and it is made anew"
        ) from error
    return KnotStates(found, tensors.get("seen"))
