"""Samples of a pipeline on given steps, as it hands them out, with the latents they came from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.interop.diffusers_schedulers import carrying_scheduler
from boss_core.interop.pipeline_networks import pipeline_networks
from boss_core.interop.recording import count_samples
from boss_core.ode.timesteps import validate_timesteps


@dataclass(frozen=True)
class PipelineSamples:
    """What a call gave.

    latents: the last state of the pipeline's scheduler, (B, ...) float32, on its device; where
        only copies of it step, as SkyReels' for each frame, theirs side by side, (B, elements).
    output: what the pipeline returned: images, frames, sound.
    evaluations: of all networks together, for one sample.
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
    counted: Counter[str] = Counter()

    def count(_: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        counted["samples"] += count_samples(args, kwargs, output)

    handles = [
        network.register_forward_hook(count, with_kwargs=True)
        for network in pipeline_networks(pipeline).values()
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
    return PipelineSamples(latents, output, counted["samples"] / len(latents))
