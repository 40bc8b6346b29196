"""How near samples come to the teacher's own, on prompts and noise that no student has seen."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boss_core.interop.pipeline_checks import silent
from boss_core.interop.pipeline_sampling import sample_pipeline
from boss_core.ode.noise import EVALUATION, seed_for
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import Times
from flows.report.media import Picture, pictures, sound_rate
from flows.search.refusals import pipeline_refusals
from flows.straighten.processes import seconds_now
from flows.straighten.teacher import PipelineTeacher

SHOWN = 4  # samples that the report shows


@dataclass(frozen=True)
class Sampled:
    """The held-out samples by one way of sampling.

    title: in words. latents: (N, ...) float32 on the CPU. shown: pictures of what the pipeline
    returned for each of the first `SHOWN`. evaluations: of all networks, for a sample.
    seconds: for a sample, with what comes before and after the steps. steps: that were
    taken. guided: as the teacher is.
    """

    title: str
    latents: Tensor
    shown: tuple[tuple[Picture, ...], ...]
    evaluations: float
    seconds: float
    steps: int
    guided: bool

    def distances(self, to: "Sampled") -> Tensor:
        """(N,), the squared distance of each sample's latents."""
        return (self.latents - to.latents).square().flatten(1).sum(dim=1)

    def distance(self, to: "Sampled") -> float:
        """The mean over samples of the squared distance of their latents."""
        return float(self.distances(to).mean())


def sample_held_out(
    teacher: PipelineTeacher,
    title: str,
    schedule: Schedule | Times,
    count: int,
    *,
    batch_size: int,
    seed: int,
    guided: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Sampled:
    """The held-out samples on the steps of a schedule, or by Euler on a fine grid of times.

    guided: called as the teacher is; else without guidance, as students are."""
    times = schedule.timesteps if isinstance(schedule, Schedule) else schedule
    solver = schedule.solver if isinstance(schedule, Schedule) else "euler"
    weights = schedule.weights if isinstance(schedule, Schedule) else None
    latents: list[Tensor] = []
    shown: list[tuple[Picture, ...]] = []
    decode = decodes(teacher.pipeline)
    evaluations = seconds = 0.0
    parts = held_out_parts(teacher, count, batch_size)
    if teacher.compiled:  # its minutes are no sample's
        call = held_out_call(teacher, parts[0], seed, guided=guided)
        with pipeline_refusals(teacher.pipeline):
            sample_pipeline(
                teacher.pipeline, times, call, solver=solver, weights=weights, decode=False
            )
    for part in parts:
        call = held_out_call(teacher, part, seed, guided=guided)
        began = seconds_now(teacher.device)
        # What it would say of a call without guidance, it has said of the teacher's.
        with pipeline_refusals(teacher.pipeline), nullcontext() if guided else silent():
            found = sample_pipeline(
                teacher.pipeline, times, call, solver=solver, weights=weights, decode=decode
            )
        seconds += seconds_now(teacher.device) - began
        latents.append(found.latents.cpu())
        evaluations = found.evaluations
        if decode and part.start < SHOWN:  # what it returned of all would fill the memory
            rate = sound_rate(teacher.pipeline)
            shown += pictures(found.output, len(part), rate, most=SHOWN - part.start)
        if on_step is not None:
            on_step(len(part))
    return Sampled(
        title, torch.cat(latents), tuple(shown), evaluations, seconds / count,
        steps=len(times) - 1, guided=guided,
    )  # fmt: skip


def held_out_parts(teacher: PipelineTeacher, count: int, batch_size: int) -> list[range]:
    """The samples that are measured, a call each."""
    return list(teacher.held_out.parts(range(count), batch_size))


def held_out_call(
    teacher: PipelineTeacher, part: range, seed: int, *, guided: bool
) -> Mapping[str, Any]:
    """The call of some of them."""
    offset = seed_for(EVALUATION, seed)
    if guided:
        return teacher.held_out.call(part, seed=offset)
    return teacher.student_call(teacher.held_out, part, seed=offset)


def decodes(pipeline: Any) -> bool:
    """Whether the pipeline can make what people see of latents."""
    return not hasattr(pipeline, "vae") or pipeline.vae is not None
