"""diffusers pipelines as teachers: the cost of every step, measured on a pipeline as it is.

A pipeline computes its velocity from prompts, guidance and packed latents in a way of its own, but
hands the result to its scheduler. So the scheduler is where to listen: one in the place of the
pipeline's own walks the fine grid with Euler steps and keeps every velocity that it is given.
That velocity is dx/dsigma, the negative of dx/dt, which a squared error does not see.

diffusers is imported where it is used only: the rest of the library works without it.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.cost import CostMatrix, CostSum
from boss_core.errors import InputError
from boss_core.fixed_schedulers import carrying_scheduler, recording_scheduler
from boss_core.timesteps import validate_timesteps
from boss_core.velocity import check_seed

# What diffusers calls the network; a second transformer takes the low noise levels of Wan 2.2.
_DENOISERS = ("transformer", "transformer_2", "unet")
_OURS = ("num_inference_steps", "sigmas", "timesteps", "output_type")


@dataclass(frozen=True)
class PipelineCost:
    """What a search needs to know of a pipeline.

    matrix: the costs of all steps, over the latents in the layout of the pipeline's scheduler.
    nfe_per_step: network evaluations for one sample in one step, counted at the network: 1, or 2
        with classifier-free guidance, as one batch of both halves or as two calls. A mean over
        steps, and so fractional where guidance is on for some of them.
    """

    matrix: CostMatrix
    nfe_per_step: float


def estimate_pipeline_cost(
    pipeline: Any,
    timesteps: ArrayLike,
    calls: Iterable[Mapping[str, Any]],
    *,
    total: CostSum | None = None,
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
    on_step: called after each grid step of each call with the number of samples in it.
    on_memory: called with the bytes of velocities about to be held, before they are.

    The states are carried in float32 and rounded to the pipeline's dtype where it sees them, so
    that roundings do not add up over the n steps; velocities are kept in the dtype they come in.
    A call holds n velocities of each of its samples: `boss_core.cost.rollout_bytes`.

    Raises InputError when the pipeline is not a flow-matching one, changes the states between
    steps (as inpainting does), leaves steps out (as starting from an image does), or its velocity
    is not finite.
    """
    times = validate_timesteps(timesteps)
    _require_flow(pipeline)
    own = pipeline.scheduler
    recorder = recording_scheduler(own, times, on_step, on_memory)
    found = total
    evaluations = samples = 0

    def count(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        nonlocal evaluations
        # A tensor, or a tuple or a diffusers output whose first entry holds the samples.
        evaluations += len(output if isinstance(output, Tensor) else output[0])

    hooks = [network.register_forward_hook(count) for network in _denoisers(pipeline)]
    try:
        pipeline.scheduler = recorder
        for number, call in enumerate(calls):
            _check_call(call, number)
            # The scheduler has the grid whatever it is asked for, so that pipelines which take
            # `sigmas` and those which do not are driven alike.
            with torch.no_grad():
                pipeline(**call, num_inference_steps=len(times) - 1, output_type="latent")
            velocities = recorder.velocities()
            if found is None:
                found = CostSum(times, velocities.device)
            found.add(velocities)
            samples += velocities.shape[1]
    finally:
        pipeline.scheduler = own
        for hook in hooks:
            hook.remove()
    if found is None or not samples:
        raise InputError("calls: none; the arguments of at least one call of the pipeline needed")
    return PipelineCost(found.result(), evaluations / (samples * (len(times) - 1)))


@torch.no_grad()
def sample_latents(
    pipeline: Any,
    timesteps: ArrayLike,
    calls: Iterable[Mapping[str, Any]],
    *,
    solver: str = "euler",
) -> Tensor:
    """Where the steps of a schedule take a pipeline: final latents of all calls, (N, ...) float32,
    as the pipeline hands them out, on its device. States are carried in float32 between steps, so
    that many of them round no more than few.

    pipeline, calls: as for `estimate_pipeline_cost`. timesteps: K + 1 times. solver: ``euler`` or
    ``ab2``. InputError for another one, for a pipeline that is no flow, and without calls.
    """
    times = validate_timesteps(timesteps)
    _require_flow(pipeline)
    own = pipeline.scheduler
    found = []
    try:
        pipeline.scheduler = carrying_scheduler(own, times, solver)
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
    """The arguments of one call for each batch of prompts, with a generator for each prompt.

    first: the index of the first sample, for `sample_generators`.
    shared: arguments that all calls have in common (`guidance_scale`, `height`, `width`, ...).

    InputError for a batch size below 1.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: {batch_size}; at least 1 needed")
    for start in range(0, len(prompts), batch_size):
        batch = list(prompts[start : start + batch_size])
        call = dict(
            shared,
            prompt=batch,
            generator=sample_generators(range(first + start, first + start + len(batch)), seed),
        )
        if negative_prompt is not None:
            # Some pipelines want as many as there are prompts, some repeat one: all take a list.
            call["negative_prompt"] = [negative_prompt] * len(batch)
        yield call


def pipeline_hash(pipeline: Any) -> str:
    """The SHA-256 of the weights that a pipeline's velocity comes from, as a schedule carries it:
    names, dtypes, shapes and bytes of the denoiser, a tensor at a time."""
    digest = hashlib.sha256()
    for network in _denoisers(pipeline):
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


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
    sigma_max = config.get("sigma_max")
    if sigma_max is not None and sigma_max > 1:
        raise InputError(
            f"pipeline: {name} has noise levels up to {sigma_max:g}; those of the linear path,"
            " from 1 to 0, needed"
        )


def _denoisers(pipeline: Any) -> list[torch.nn.Module]:
    found = [getattr(pipeline, name, None) for name in _DENOISERS]
    networks = [network for network in found if isinstance(network, torch.nn.Module)]
    if not networks:
        raise InputError(
            f"pipeline: {type(pipeline).__name__} has no {' or '.join(_DENOISERS)}, where network"
            " evaluations are counted; one of them needed"
        )
    return networks


def _check_call(call: Mapping[str, Any], number: int) -> None:
    ours = [name for name in _OURS if name in call]
    if ours:
        raise InputError(f"calls: {ours[0]} in call {number} is set by the search; leave it out")
    if call.get("generator") is None and call.get("latents") is None:
        raise InputError(
            f"calls: call {number} has neither generator nor latents; generator="
            "sample_generators(...), one for each sample, needed for results that come out again"
        )
