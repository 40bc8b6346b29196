"""A few evaluations before the long work: whether gradients arrive, what a step takes."""

from dataclasses import dataclass

import torch

from boss_core.errors import InputError, lacks_memory
from boss_core.interop.pipeline_lora import (
    TrainedWeights,
    add_lora,
    all_weights,
    freeze,
    remove_lora,
)
from boss_core.interop.teacher_forcing import straighten_call, teacher_states
from boss_core.ode.noise import TRAJECTORIES, seed_for
from boss_core.ode.timesteps import uniform
from flows.search.refusals import pipeline_refusals
from flows.straighten.processes import seconds_now
from flows.straighten.request import PipelineRequest
from flows.straighten.teacher import PipelineTeacher


@dataclass(frozen=True)
class Trial:
    """What one call took. seconds: the teacher's for a grid step, and the student's for a step
    with its gradients, of one call each. nfe: the teacher's evaluations for a sample in a step.
    peak: bytes on the GPU, None on a CPU. trained: parameters that are. elements: of a sample's
    states."""

    teacher_seconds: float
    student_seconds: float
    nfe: float
    peak: int | None
    trained: int
    elements: int


def trained_weights(teacher: PipelineTeacher, asked: PipelineRequest) -> TrainedWeights:
    """What is trained of the pipeline, at its start."""
    if asked.training.rank is None:
        return all_weights(teacher.pipeline)
    return add_lora(teacher.pipeline, asked.training.rank, seed=asked.seed)


def untrained(teacher: PipelineTeacher, asked: PipelineRequest) -> None:
    """The pipeline as it was before `trained_weights`, where that was an adapter."""
    if asked.training.rank is None:
        freeze(teacher.pipeline)
    else:
        remove_lora(teacher.pipeline)


def try_out(teacher: PipelineTeacher, asked: PipelineRequest) -> Trial:
    """One call of the teacher and one of the student, on two steps; InputError where the student
    cannot be trained, or not in this memory."""
    part = next(
        teacher.training.parts(range(asked.training.trajectories), asked.training.batch_size)
    )
    seed, times = seed_for(TRAJECTORIES, asked.seed), uniform(2)
    pipeline, on = teacher.pipeline, teacher.device
    if on.type == "cuda":
        torch.cuda.reset_peak_memory_stats(on)
    with pipeline_refusals(pipeline):
        call = teacher.training.call(part, seed=seed)
        states, counted = teacher_states(pipeline, times, (0, 1, 2), call)
        began = seconds_now(on)
        teacher_states(pipeline, times, (0, 1, 2), teacher.training.call(part, seed=seed))
        teacher_seconds = (seconds_now(on) - began) / 2
        weights = trained_weights(teacher, asked)
        try:
            for _ in range(2):  # the first chooses kernels
                began = seconds_now(on)
                weights.push()
                straighten_call(
                    pipeline, times, asked.solver,
                    teacher.student_call(teacher.training, part, seed=seed), states,
                    lambda k: weights.collect(),
                )  # fmt: skip
                student_seconds = (seconds_now(on) - began) / 2
        except Exception as error:
            if not lacks_memory(error):
                raise
            raise InputError(
                f"--batch-size: {len(part)} samples do not fit into the memory of {on} with their"
                " gradients; fewer with more --accumulate, --gradient-checkpointing, or a lower"
                " --rank needed"
            ) from error
        finally:
            untrained(teacher, asked)
    peak = torch.cuda.max_memory_allocated(on) if on.type == "cuda" else None
    trained = sum(w.numel() for w in weights.weights)
    elements = sum(s[0, 0].numel() for s in states.states)
    return Trial(teacher_seconds, student_seconds, float(counted.max()), peak, trained, elements)
