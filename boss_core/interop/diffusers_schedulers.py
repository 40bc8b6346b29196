"""Schedulers for diffusers pipelines that walk given timesteps, whatever they are asked for.

diffusers is imported where it is used only: the rest of the library works without it.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.errors import InputError
from boss_core.ode.schedule import check_weights
from boss_core.ode.solver_table import LINEAR, SOLVERS
from boss_core.ode.timesteps import validate_timesteps


def fixed_scheduler(
    scheduler: Any,
    timesteps: ArrayLike,
    solver: str = "euler",
    weights: Sequence[Sequence[float]] | None = None,
) -> Any:
    """A `FixedFlowScheduler` that walks these timesteps whatever it is asked for.

    For pipelines whose call takes no `sigmas` (Wan, LTX, Mochi), and right for all others too:
    put it in ``pipeline.scheduler`` and pass ``num_inference_steps=K``. Its steps are in its
    configuration: copies, pickles and saved pipelines have them.

    With solver ``ab2`` its steps are those of `boss_core.ode.solvers.ab2`, for as many evaluations:
    it keeps the velocity of the step before, in float32, and starts anew at each call; with
    ``multistep`` and the weights of a schedule (`boss_core.ode.schedule.Schedule.weights`) those
    of the two before. No class of diffusers takes such steps. InputError for other solvers.

    scheduler: the pipeline's own, whose settings are kept for the pipeline to read, without effect
        on the steps; but with its ``invert_sigmas`` (Mochi) the levels are t in place of 1 - t.
    timesteps: K + 1 increasing times from 0 to 1; from later on for image to image, whose pipelines
        take all of them with ``strength=1.0``.
    """
    return _made(_fixed_class(), scheduler, timesteps, solver, weights)


def carrying_scheduler(
    scheduler: Any,
    timesteps: ArrayLike,
    solver: str = "euler",
    weights: Sequence[Sequence[float]] | None = None,
) -> Any:
    """A `fixed_scheduler` that keeps states in float32 between steps, so that rounding does not
    add up over many steps; the pipeline sees them in its own dtype."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteSchedulerOutput,
    )

    base: Any = _fixed_class()

    class CarryingScheduler(base):
        """Keeps the state of the step before in float32, and goes on from it. So do copies that a
        pipeline makes of it, as SkyReels does for each frame; ``copies`` has them."""

        state: Tensor
        copies: list[Any]

        def __deepcopy__(self, memo: Any) -> Any:
            twin = copy.copy(self)
            self.copies.append(twin)
            return twin

        # Pipelines look for the names of the arguments to learn what the scheduler accepts.
        def set_timesteps(
            self,
            num_inference_steps: int | None = None,
            device: Any = None,
            sigmas: Any = None,
            mu: float | None = None,
            timesteps: Any = None,
        ) -> None:
            with without_traceback():
                super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)

        def step(
            self,
            model_output: Tensor,
            timestep: Any,
            sample: Tensor,
            return_dict: bool = True,
            **kwargs: Any,
        ) -> Any:
            start = sample.float()
            if self.step_index is not None:
                start = self.state
                refuse_changes(sample, start, self.step_index)
            with without_traceback():
                (self.state,) = super().step(
                    model_output.float(), timestep, start, return_dict=False, **kwargs
                )
            state = self.state.to(sample.dtype, copy=True)  # a network may work in place
            return FlowMatchEulerDiscreteSchedulerOutput(state) if return_dict else (state,)

    made = _made(CarryingScheduler, scheduler, timesteps, solver, weights)
    made.copies = []
    return made


@contextmanager
def without_traceback() -> Iterator[None]:
    """What `FixedFlowScheduler` refuses, as an InputError: it stands alone, without our errors."""
    try:
        yield
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from error


def refuse_changes(sample: Tensor, state: Tensor, k: int) -> None:
    """InputError where the state that comes to step k is another than the step before left."""
    # Rounding to bfloat16 moves a state by 2^-9 of itself; whatever blends another image in, or
    # adds noise, moves it by much more.
    same = sample.shape == state.shape and torch.allclose(
        sample.float(), state, rtol=2**-7, atol=1e-3, equal_nan=True
    )
    if not same:
        raise InputError(
            f"pipeline: changes the states between steps {k - 1} and {k} (inpainting, callbacks"
            " and networks that work in place do so); one whose steps follow its velocity alone"
            " needed"
        )


def _fixed_class() -> Any:
    from boss_core.interop.fixed_flow_scheduler import FixedFlowScheduler

    return FixedFlowScheduler


def _made(
    kind: Any,
    scheduler: Any,
    timesteps: ArrayLike,
    solver: str,
    weights: Sequence[Sequence[float]] | None,
) -> Any:
    """A scheduler of that class for these times, with the settings of the pipeline's own."""
    times = validate_timesteps(timesteps, from_noise=False)
    if solver not in LINEAR:
        raise InputError(f"solver: {solver!r}; {' or '.join(LINEAR)} needed")
    if weights is not None or SOLVERS[solver].fitted:
        check_weights(solver, weights, len(times) - 1)
    return kind.like(scheduler, 1.0 - times, solver, weights)
