"""diffusers pipelines as teachers: the cost of every step, measured on a pipeline as it is.

A pipeline computes its velocity from prompts, guidance and packed latents in a way of its own, but
hands the result to its scheduler. So the scheduler is where to listen: one in the place of the
pipeline's own walks the fine grid with Euler steps and keeps every velocity that it is given.
That velocity is dx/dsigma, the negative of dx/dt, which a squared error does not see.

diffusers is imported where it is used only: the rest of the library works without it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from boss_core.costs.matrix import CostMatrix, CostSum
from boss_core.errors import InputError
from boss_core.interop.diffusers_schedulers import carrying_scheduler
from boss_core.interop.few_steps import refuse_distilled, refuse_turbo
from boss_core.interop.pipeline_checks import (
    Repeat,
    compare_walks,
    probe_steps,
    refuse_unused,
    run_walk,
)
from boss_core.interop.pipeline_networks import pipeline_hash as pipeline_hash
from boss_core.interop.pipeline_networks import pipeline_networks
from boss_core.interop.pipeline_rounding import rounding_points, rounding_variance
from boss_core.interop.recording import DENOISERS, Walk
from boss_core.ode.noise import check_seed
from boss_core.ode.timesteps import validate_timesteps

_OURS = ("num_inference_steps", "sigmas", "timesteps", "output_type")


@dataclass(frozen=True)
class PipelineCost:
    """What a search needs to know of a pipeline.

    matrix: the costs of all steps, over the latents in the layout of the pipeline's scheduler.
    nfe: (n,), the network evaluations for one sample in a step from each grid point but the last,
        counted at the networks: 1, or 2 with classifier-free guidance, as one batch of both halves
        or as two calls; those of ControlNets too. Of the calls of this search.
    discarded: the share of the latents that the pipeline overwrites before its network sees them,
        as a first frame that is given; it is not in the costs.
    rounding: `boss_core.interop.pipeline_rounding.rounding_variance`, where it was asked for.
    """

    matrix: CostMatrix
    nfe: NDArray[np.float64]
    discarded: float = 0.0
    rounding: NDArray[np.float64] | None = None

    @property
    def nfe_per_step(self) -> float:
        """A mean over the grid, and so fractional where guidance is on at some times only."""
        return float(self.nfe.mean())


# Half of its lines say what a caller has to know.
def estimate_pipeline_cost(
    pipeline: Any,
    timesteps: ArrayLike,
    calls: Iterable[Mapping[str, Any]],
    *,
    total: CostSum | None = None,
    check: bool = True,
    rounding: bool = False,
    on_step: Callable[[int], None] | None = None,
    on_memory: Callable[[int], None] | None = None,
) -> PipelineCost:
    """The cost of every step of a grid (paper, eq. 5), from Euler rollouts by a pipeline.

    pipeline: a flow-matching `DiffusionPipeline` that starts from noise, on its device and in its
        dtype. Its scheduler is replaced during the search and put back, also after errors.
    timesteps: n + 1 increasing times from 0 to 1; they need not be uniform.
    calls: the arguments of each call, such as those of `prompt_calls`; one call is one batch. Each
        needs `generator`, a list with one for each sample, so that a sample does not depend on
        the batch it is in (`sample_generators`), or `latents`, start states in the layout that the
        pipeline takes. The number and place of the steps and the kind of output are set here.
    total: a sum on the pipeline's device to add to, where a search goes on; its timesteps are
        those given.
    check: take the first call's states once more in some 16 steps of other sizes, and compare the
        velocities: costs are of steps only where a velocity is one of state and time. And whether
        it depends on the guidance in that call, in some 4 steps more.
    rounding: measure what the networks round, in 8 steps of the first call with their weights in
        float32 meanwhile.
    on_step: called after each grid step of each call with the number of samples in it.
    on_memory: called with the bytes of velocities about to be held, before they are.

    The states are carried in float32 and rounded to the pipeline's dtype where it sees them, so
    that roundings do not add up over the n steps; velocities are kept in the dtype they come in.
    A call holds n velocities of each of its samples: `boss_core.costs.matrix.rollout_bytes`.

    Raises InputError when the pipeline is not a flow-matching one, changes the states between
    steps (as inpainting does), leaves steps out (as starting from an image does), takes its steps
    in several sections, its velocity is not finite, or depends on more than state and time: on
    the number of the step, on where it ends (mean flows), or on the steps before.
    """
    times = validate_timesteps(timesteps)
    _require_flow(pipeline)
    probes = probe_steps(len(times) - 1) if check else []
    measured = rounding_points(len(times) - 1) if rounding else []
    walk = Walk(
        times,
        pipeline_networks(pipeline),
        keep=sorted({k for probe in probes for k in probe[:-1]} | set(measured)),
        on_step=on_step,
        on_memory=on_memory,
    )
    found = total
    samples = 0
    variance = None
    evaluations = np.zeros(len(times) - 1)
    for number, call in enumerate(calls):
        _check_call(call, number)
        again = Repeat(call)
        velocities, counted = run_walk(pipeline, walk, call)
        if number == 0:
            if check:
                _check_velocity(pipeline, walk, probes, call, again)
            if rounding:
                again.rewind()
                variance = rounding_variance(pipeline, walk, call)
        if found is None:
            found = CostSum(times, velocities.device)
        found.add(velocities)
        samples += velocities.shape[1]
        evaluations += velocities.shape[1] * counted
    if found is None or not samples:
        raise InputError("calls: none; the arguments of at least one call of the pipeline needed")
    return PipelineCost(found.result(), evaluations / samples, walk.discarded, variance)


def _check_velocity(
    pipeline: Any,
    walk: Walk,
    probes: Sequence[Sequence[int]],
    call: Mapping[str, Any],
    again: Repeat,
) -> None:
    """InputError unless the velocity is one of state and time, and heeds the call's guidance."""
    again.rewind()
    refuse_unused(pipeline, walk.networks, call)
    for probe in probes:
        compare_walks(pipeline, walk, probe, call, again)


@torch.no_grad()
def sample_latents(
    pipeline: Any,
    timesteps: ArrayLike,
    calls: Iterable[Mapping[str, Any]],
    *,
    solver: str = "euler",
    weights: Sequence[Sequence[float]] | None = None,
) -> Tensor:
    """Where the steps of a schedule take a pipeline: final latents of all calls, (N, ...) float32,
    as the pipeline hands them out, on its device. States are kept in float32 between steps, so
    that rounding does not add up over many steps.

    pipeline, calls: as for `estimate_pipeline_cost`. timesteps: K + 1 times. solver: a linear
    multistep method; weights: of ``multistep``, those of its schedule. InputError for another
    solver, for a pipeline that is no flow, and without calls.
    """
    times = validate_timesteps(timesteps)
    _require_flow(pipeline)
    own = pipeline.scheduler
    found = []
    try:
        pipeline.scheduler = carrying_scheduler(own, times, solver, weights)
        for number, call in enumerate(calls):
            _check_call(call, number)
            latents = pipeline(
                **call, num_inference_steps=len(times) - 1, output_type="latent", return_dict=False
            )[0]
            found.append(latents.float())
    finally:
        pipeline.scheduler = own
    if not found:
        raise InputError("calls: none; the arguments of at least one call of the pipeline needed")
    return torch.cat(found)


def prompt_calls(
    prompts: Sequence[str],
    *,
    batch_size: int,
    seed: int = 0,
    first: int = 0,
    negative_prompt: str | None = None,
    **shared: Any,
) -> Iterator[dict[str, Any]]:
    """The arguments of one call for each batch of prompts, with a generator for each prompt; a
    batch of one has them by themselves, as some pipelines take no lists (Wan-VACE).

    first: the index of the first sample, for `sample_generators`.
    shared: arguments that all calls have in common (`guidance_scale`, `height`, `width`, ...).

    InputError for a batch size below 1.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: {batch_size}; at least 1 needed")
    for start in range(0, len(prompts), batch_size):
        batch = list(prompts[start : start + batch_size])
        samples = range(first + start, first + start + len(batch))
        generators = sample_generators(samples, seed)
        alone = len(batch) == 1
        call = dict(shared, prompt=batch[0] if alone else batch)
        call["generator"] = generators[0] if alone else generators
        if negative_prompt is not None:
            # Some pipelines want as many as there are prompts, some repeat one.
            call["negative_prompt"] = negative_prompt if alone else [negative_prompt] * len(batch)
        yield call


def sample_generators(indices: range, seed: int) -> list[torch.Generator]:
    """A generator on the CPU for each sample: its noise depends on ``seed`` and its index alone,
    on any device and in any batch (diffusers draws on the generator's device). InputError for a
    seed below 0 or above 2^63 - 1."""
    check_seed(seed)
    # torch keeps 32 bits of a CPU seed: both numbers are hashed into them.
    seeds = [int(np.random.SeedSequence([seed, i]).generate_state(1)[0]) for i in indices]
    return [torch.Generator().manual_seed(s) for s in seeds]


def _require_flow(pipeline: Any) -> None:
    """InputError unless the scheduler says that the network predicts a flow's velocity."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

    name = type(pipeline).__name__
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None:
        raise InputError(f"pipeline: a {name} has no scheduler; a diffusers pipeline needed")
    config = scheduler.config
    refuse_distilled(type(pipeline), type(scheduler).__name__, getattr(pipeline, "config", {}))
    networks = {part: getattr(pipeline, part, None) for part in DENOISERS}
    refuse_turbo(type(pipeline), networks)
    prediction = config.get("prediction_type")
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler)
    # UniPC and DPM-Solver serve flows too (Wan, Sana), when they are told to.
    flow = flow or (prediction == "flow_prediction" and bool(config.get("use_flow_sigmas")))
    if not flow:
        what = f" and prediction_type {prediction}" if prediction else ""
        raise InputError(
            f"pipeline: {name} with a {type(scheduler).__name__}{what}; a flow-matching one needed"
            " (FlowMatchEulerDiscreteScheduler, or use_flow_sigmas with flow_prediction)"
        )
    if config.get("stochastic_sampling"):
        raise InputError(
            f"pipeline: the {type(scheduler).__name__} of {name} has stochastic_sampling: its"
            " network is distilled for steps that add new noise, and not for those of a flow; one"
            " without needed"
        )
    sigma_max = config.get("sigma_max")
    if sigma_max is not None and sigma_max > 1:
        raise InputError(
            f"pipeline: {name} has noise levels up to {sigma_max:g}; those of the linear path,"
            " from 1 to 0, needed"
        )


def _check_call(call: Mapping[str, Any], number: int) -> None:
    ours = [name for name in _OURS if name in call]
    if ours:
        raise InputError(f"calls: {ours[0]} in call {number} is set by the search; leave it out")
    if call.get("generator") is None and call.get("latents") is None:
        raise InputError(
            f"calls: call {number} has neither generator nor latents; generator="
            "sample_generators(...), one for each sample, needed for results that come out again"
        )
