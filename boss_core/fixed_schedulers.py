"""Schedulers for diffusers pipelines that walk given timesteps, whatever they are asked for.

diffusers is imported where it is used only: the rest of the library works without it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.errors import InputError
from boss_core.timesteps import Times, validate_timesteps


def fixed_scheduler(scheduler: Any, timesteps: ArrayLike, solver: str = "euler") -> Any:
    """A `FixedFlowScheduler` that walks these timesteps whatever it is asked for.

    For pipelines whose call takes no `sigmas` (Wan, LTX, Mochi), and right for all others too:
    put it in ``pipeline.scheduler`` and pass ``num_inference_steps=K``. Its steps are in its
    configuration: copies, pickles and saved pipelines have them.

    With solver ``ab2`` its steps are those of `boss_core.solvers.ab2`, for as many evaluations:
    it keeps the velocity of the step before, in float32, and starts anew at each call. No class
    of diffusers takes such steps. InputError for a solver that is neither.

    scheduler: the pipeline's own, whose settings are kept for the pipeline to read, without effect
        on the steps; but with its ``invert_sigmas`` (Mochi) the levels are t in place of 1 - t.
    timesteps: K + 1 increasing times from 0 to 1.
    """
    return _made(_fixed_class(), scheduler, validate_timesteps(timesteps), solver)


def _fixed_class() -> Any:
    from boss_core.fixed_flow_scheduler import FixedFlowScheduler

    return FixedFlowScheduler


def _made(kind: Any, scheduler: Any, times: Times, solver: str) -> Any:
    """A scheduler of that class for these times, with the settings of the pipeline's own."""
    if solver not in ("euler", "ab2"):
        raise InputError(f"solver: {solver!r}; euler or ab2 needed in a scheduler")
    return kind.like(scheduler, 1.0 - times, solver)


def carrying_scheduler(scheduler: Any, timesteps: ArrayLike, solver: str = "euler") -> Any:
    """A `fixed_scheduler` whose states are carried in float32 between steps, so that many of them
    round no more than few; the pipeline sees them in its own dtype."""
    base: Any = _fixed_class()

    class CarryingScheduler(base):
        """Keeps the state of the step before in float32, and goes on from it."""

        state: Tensor

        def step(
            self,
            model_output: Tensor,
            timestep: Any,
            sample: Tensor,
            return_dict: bool = True,
            **kwargs: Any,
        ) -> Any:
            start = sample.float() if self.step_index is None else self.state
            (self.state,) = super().step(
                model_output.float(), timestep, start, return_dict=False, **kwargs
            )
            return _result(self.state.to(sample.dtype), return_dict)

    return _made(CarryingScheduler, scheduler, validate_timesteps(timesteps), solver)


def recording_scheduler(
    scheduler: Any,
    times: Times,
    on_step: Callable[[int], None] | None,
    on_memory: Callable[[int], None] | None,
) -> Any:
    """A `fixed_scheduler` of Euler steps that keeps the velocities of one call after the other, in
    the dtype that they come in.

    on_step: called after each step with the number of samples in it. on_memory: called with the
    bytes of velocities about to be held, before they are.
    """
    base: Any = _fixed_class()
    steps = len(times) - 1
    levels = times if scheduler.config.get("invert_sigmas") else 1.0 - times

    class RecordingEulerScheduler(base):
        """Euler steps in float32, and the velocities that they were made of."""

        held: Tensor | None = None
        samples = 0
        state: Tensor

        def step(
            self,
            model_output: Tensor,
            timestep: Any,
            sample: Tensor,
            return_dict: bool = True,
            **kwargs: Any,
        ) -> Any:
            if kwargs.get("per_token_timesteps") is not None:
                raise InputError(
                    "pipeline: gives each token a noise level of its own; one for all needed"
                )
            k = self.step_index or 0
            self._keep(k, model_output, sample)
            self.state = self.state + (levels[k + 1] - levels[k]) * model_output.float()
            self._step_index = k + 1
            if on_step is not None:
                on_step(len(sample))
            return _result(self.state.to(model_output.dtype), return_dict)

        def _keep(self, k: int, velocity: Tensor, sample: Tensor) -> None:
            if velocity.shape != sample.shape:
                raise InputError(
                    f"pipeline: velocity of shape {tuple(velocity.shape)} for states of shape"
                    f" {tuple(sample.shape)}; the same shape needed"
                )
            if k >= steps:
                raise InputError(f"pipeline: takes more than the {steps} steps of the grid")
            if k == 0:
                self.state, self.samples = sample.float(), len(sample)
            # Rounding to bfloat16 moves a state by 2^-9 of itself; whatever blends another
            # image in, or adds noise, moves it by much more.
            elif not torch.allclose(
                sample.float(), self.state, rtol=2**-7, atol=1e-3, equal_nan=True
            ):
                raise InputError(
                    f"pipeline: changes the states between steps {k - 1} and {k} (inpainting and"
                    " callbacks do so); one whose steps follow its velocity alone needed"
                )
            shape = (steps, len(velocity), velocity[0].numel())
            if self.held is None or self.held.shape[1] < shape[1] or self.held.shape[2] != shape[2]:
                if on_memory is not None:
                    on_memory(math.prod(shape) * velocity.dtype.itemsize)
                self.held = torch.empty(shape, dtype=velocity.dtype, device=velocity.device)
            self.held[k, : len(velocity)] = velocity.flatten(1)

        def velocities(self) -> Tensor:
            """Those of the last call: (n, B, elements)."""
            if self.held is None or self.step_index != steps:
                raise InputError(
                    f"pipeline: took {self.step_index or 0} of the {steps} steps of the grid;"
                    " one that starts from noise and asks its scheduler for every step needed"
                )
            return self.held[:, : self.samples]

    return _made(RecordingEulerScheduler, scheduler, times, "euler")


def _result(state: Tensor, return_dict: bool) -> Any:
    """What `step` hands out."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteSchedulerOutput,
    )

    return FlowMatchEulerDiscreteSchedulerOutput(state) if return_dict else (state,)
