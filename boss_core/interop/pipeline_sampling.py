"""Samples of a pipeline on given steps, as it hands them out, with the latents they came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.interop.diffusers_schedulers import carrying_scheduler
from boss_core.interop.pipeline_networks import pipeline_networks
from boss_core.interop.recording import DENOISERS, count_samples
from boss_core.ode.timesteps import validate_timesteps

_EVERY_STEP = ("controlnet", "transformer", "unet")  # in the names of what steps evaluate


@dataclass(frozen=True)
class PipelineSamples:
    """What a call gave.

    latents: the last state of the pipeline's scheduler, (B, ...) float32, on its device; where
        only copies of it step, as SkyReels' for each frame, theirs side by side, (B, elements).
    output: what the pipeline returned: images, frames, sound.
    evaluations: of all networks together, for one sample, but for those that prepare the
        conditions before the first step.
    """

    latents: Tensor
    output: Any
    evaluations: float


@torch.no_grad()
def sample_pipeline(
    pipeline: Any,
    timesteps: ArrayLike,
    call: Mapping[str, Any],
    *,
    solver: str = "euler",
    weights: Sequence[Sequence[float]] | None = None,
    decode: bool = True,
) -> PipelineSamples:
    """One call of a pipeline on the steps of a schedule, states in float32 between them.

    timesteps: K + 1 times. call: as for
    `boss_core.interop.diffusers_pipelines.estimate_pipeline_cost`. solver: a linear
    multistep method; weights: of ``multistep``, those of its schedule.
    decode: as images, frames or sound; else latents. InputError for another solver.
    """
    times = validate_timesteps(timesteps)
    own = pipeline.scheduler
    counted: list[tuple[str, int]] = []

    def count(name: str, _: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        counted.append((name, count_samples(args, kwargs, output)))

    handles = [
        network.register_forward_hook(partial(count, name), with_kwargs=True)
        for name, network in pipeline_networks(pipeline).items()
    ]
    kind = {} if decode else {"output_type": "latent"}
    try:
        pipeline.scheduler = scheduler = carrying_scheduler(own, times, solver, weights)
        output = pipeline(**call, num_inference_steps=len(times) - 1, **kind)
    finally:
        pipeline.scheduler = own
        for handle in handles:
            handle.remove()
    latents = getattr(scheduler, "state", None)
    if latents is None:
        stepped = [c.state for c in scheduler.copies if hasattr(c, "state")]
        latents = torch.cat([state.flatten(1) for state in stepped], dim=1)
    return PipelineSamples(latents, output, _of_steps(counted) / len(latents))


def _of_steps(counted: Sequence[tuple[str, int]]) -> int:
    """The evaluations in steps: of all networks but those that were asked before the denoiser was,
    and never again, as ACE-Step's of the conditions. A ControlNet, or a network for guidance, may
    be asked first too, in a single step."""
    names = [name for name, _ in counted]
    first = next((k for k, name in enumerate(names) if name in DENOISERS), 0)
    before, later = set(names[:first]), set(names[first:])
    once = {n for n in before - later if not any(part in n for part in _EVERY_STEP)}
    return sum(number for name, number in counted if name not in once)
