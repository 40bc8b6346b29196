"""Schedulers for diffusers pipelines that walk given timesteps, whatever they are asked for.

diffusers is imported where it is used only: the rest of the library works without it.
"""

from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.errors import InputError
from boss_core.scheduler_times import network_times
from boss_core.solvers import extrapolation_weights
from boss_core.timesteps import Times, validate_timesteps


def fixed_scheduler(scheduler: Any, timesteps: ArrayLike, solver: str = "euler") -> Any:
    """A `FlowMatchEulerDiscreteScheduler` that walks these timesteps whatever it is asked for.

    For pipelines whose call takes no `sigmas` (Wan, LTX, Mochi), and right for all others too:
    put it in ``pipeline.scheduler`` and pass ``num_inference_steps=K``.

    With solver ``ab2`` its steps are those of `boss_core.solvers.ab2`, for as many evaluations:
    it keeps the velocity of the step before, in float32, and starts anew at each call. No class
    of diffusers takes such steps. InputError for a solver that is neither.

    scheduler: the pipeline's own, whose settings are kept for the pipeline to read, without effect
        on the steps; but with its ``invert_sigmas`` (Mochi) the levels are t in place of 1 - t.
    timesteps: K + 1 increasing times from 0 to 1.
    """
    times = validate_timesteps(timesteps)
    return _solver_class(times, solver).from_config(_kept_config(scheduler))


def _kept_config(scheduler: Any) -> dict[str, Any]:
    """The settings that `FlowMatchEulerDiscreteScheduler` knows. One that it does not know, as
    UniPC's `use_flow_sigmas`, would stay visible and make some pipelines drop their sigmas."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    default = FlowMatchEulerDiscreteScheduler().config
    names = [name for name in default if not name.startswith("_")]
    kept = {name: scheduler.config.get(name, default[name]) for name in names}
    return kept | {"stochastic_sampling": False}  # the one that would change the steps


def _fixed_class(times: Times) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteSchedulerOutput,
    )

    class FixedEulerScheduler(FlowMatchEulerDiscreteScheduler):
        """Euler steps at given times."""

        solver = "euler"

        # Pipelines look for these names to learn what the scheduler accepts.
        def set_timesteps(
            self,
            num_inference_steps: int | None = None,
            device: Any = None,
            sigmas: Any = None,
            mu: float | None = None,
            timesteps: Any = None,
        ) -> None:
            self.levels = times if self.config.invert_sigmas else 1.0 - times
            self.num_inference_steps = len(times) - 1
            self.sigmas = torch.tensor(self.levels, dtype=torch.float32, device=device)
            self.timesteps = network_times(
                self.config, self.sigmas[:-1], sigmas=sigmas, timesteps=timesteps, mu=mu
            )
            self._step_index = None
            self._begin_index = None

        def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
            """As it is: Bria asks for it."""
            return sample

        def _result(self, state: Tensor, return_dict: bool) -> Any:
            """What `step` hands out, for the steps of subclasses."""
            return FlowMatchEulerDiscreteSchedulerOutput(state) if return_dict else (state,)

    return FixedEulerScheduler


def _two_step_class(times: Times) -> Any:
    base: Any = _fixed_class(times)
    weights = extrapolation_weights(times).tolist()

    class FixedTwoStepScheduler(base):
        """Steps of two-step Adams-Bashforth at given times: Euler steps along the velocity that
        it extrapolates. The ratios of steps, and so the weights, are those of the levels."""

        solver = "ab2"
        before: Tensor | None = None

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
                    "pipeline: gives each token a noise level of its own; one for all needed by ab2"
                )
            if self.step_index is None:
                # The first since set_timesteps.
                self._init_step_index(timestep)
                self.before = None
            weight = weights[self.step_index]
            # A network may return the same buffer each time.
            velocity = model_output.to(torch.float32, copy=True)
            used = velocity
            if self.before is not None:
                used = (1.0 + weight) * velocity - weight * self.before
            self.before = velocity
            (state,) = super().step(used, timestep, sample, return_dict=False, **kwargs)
            return self._result(state.to(model_output.dtype), return_dict)

    return FixedTwoStepScheduler


def _solver_class(times: Times, solver: str) -> Any:
    classes = {"euler": _fixed_class, "ab2": _two_step_class}
    if solver not in classes:
        raise InputError(f"solver: {solver!r}; {' or '.join(classes)} needed in a scheduler")
    return classes[solver](times)


def carrying_scheduler(scheduler: Any, timesteps: ArrayLike, solver: str = "euler") -> Any:
    """A `fixed_scheduler` whose states are carried in float32 between steps, so that many of them
    round no more than few; the pipeline sees them in its own dtype."""
    times = validate_timesteps(timesteps)
    base: Any = _solver_class(times, solver)

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
            return self._result(self.state.to(sample.dtype), return_dict)

    return CarryingScheduler.from_config(_kept_config(scheduler))
