"""Solvers of ``dx/dt = v(x, t)`` as plain functions.

All take a velocity, the start states ``x`` of shape (B, ...) and n + 1 increasing times, and
return the final states, of the shape, dtype and device of ``x``. They run without gradients, and
raise InputError for times that do not increase to 1, from 0 or later, and for a velocity that
returns anything but a tensor like its states. ``x`` itself stays as it is, whatever the velocity
does with its input.

An ``Observer`` is called at every knot k = 0..n, in order, with ``(k, x_k, v_k)``: the state
there and the velocity ``v(x_k, t_k)``, or None where the solver did not evaluate it (always at
the last knot). It must copy what it keeps.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.ode.schedule import Schedule, check_weights
from boss_core.ode.solver_table import LINEAR, solver_named, weights_of_steps
from boss_core.ode.solver_table import SOLVERS as TABLE
from boss_core.ode.timesteps import validate_timesteps
from boss_core.ode.velocity import VelocityField, evaluate

Observer = Callable[[int, Tensor, Tensor | None], None]


def euler(
    velocity: VelocityField,
    x: Tensor,
    timesteps: ArrayLike,
    *,
    observer: Observer | None = None,
) -> Tensor:
    """Explicit Euler: order 1, one evaluation a step."""
    return multistep("euler", velocity, x, timesteps, observer=observer)


def ab2(
    velocity: VelocityField,
    x: Tensor,
    timesteps: ArrayLike,
    *,
    observer: Observer | None = None,
) -> Tensor:
    """Two-step Adams-Bashforth with unequal steps, the first by Euler: order 2 for one
    evaluation a step (Hairer, Norsett and Wanner, Solving ODEs I, III.5)."""
    return multistep("ab2", velocity, x, timesteps, observer=observer)


@torch.no_grad()
def multistep(
    name: str,
    velocity: VelocityField,
    x: Tensor,
    timesteps: ArrayLike,
    *,
    weights: Sequence[Sequence[float]] | None = None,
    observer: Observer | None = None,
) -> Tensor:
    """Any linear multistep method by its name in `boss_core.ode.solver_table.SOLVERS`.

    weights: of ``multistep``, whose steps have those of a schedule (`Schedule.weights`)."""
    times = validate_timesteps(timesteps, from_noise=False).tolist()
    lengths = [after - before for before, after in itertools.pairwise(times)]
    if weights is not None or solver_named(name).fitted:
        check_weights(name, weights, len(lengths))
    before: list[Tensor] = []  # velocities, the latest first
    for k, of_step in enumerate(weights or weights_of_steps(name, lengths)):
        v = evaluate(velocity, x, _batch_time(x, times[k]))
        if observer is not None:
            observer(k, x, v)
        x = linear_step(x, lengths[k], of_step, [v, *before][: len(of_step)])
        if looks_back := TABLE[name].looks_back:
            # A network may return the same buffer each time.
            before = [v.clone(), *before][:looks_back]
    if observer is not None:
        observer(len(times) - 1, x, None)
    return x


def linear_step(
    x: Tensor,
    length: float | Tensor,
    weights: Sequence[float | Tensor],
    velocities: Sequence[Tensor],
) -> Tensor:
    """One step of a linear multistep method from states x, (B, ...), along velocities there and at
    the knots before, the latest first, each (B, ...): the one place where such steps are taken.

    weights: numbers, or tensors that broadcast to many steps at once.
    """
    for weight, v in zip(weights, velocities, strict=True):
        x = x + (length * weight) * v
    return x


@torch.no_grad()
def heun(
    velocity: VelocityField,
    x: Tensor,
    timesteps: ArrayLike,
    *,
    observer: Observer | None = None,
) -> Tensor:
    """Heun's method (explicit trapezoid): order 2, two evaluations a step, the last included."""
    times = validate_timesteps(timesteps, from_noise=False).tolist()
    for k in range(len(times) - 1):
        h = times[k + 1] - times[k]
        # Kept over another call, and a network may return the same buffer each time.
        v = evaluate(velocity, x, _batch_time(x, times[k])).clone()
        if observer is not None:
            observer(k, x, v)
        v_next = evaluate(velocity, x + h * v, _batch_time(x, times[k + 1]))
        x = x + (0.5 * h) * (v + v_next)
    if observer is not None:
        observer(len(times) - 1, x, None)
    return x


@torch.no_grad()
def rk45(
    velocity: VelocityField,
    x: Tensor,
    timesteps: ArrayLike = (0.0, 1.0),
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    observer: Observer | None = None,
) -> Tensor:
    """Adaptive Dormand-Prince 4(5) by torchdiffeq, through every given time.

    Its step sizes come from an error norm over the whole batch, so a sample depends on its
    batch within the tolerance; the fixed-step solvers have no such dependence.
    """
    from torchdiffeq import odeint

    times = torch.as_tensor(validate_timesteps(timesteps, from_noise=False), device=x.device)
    states = odeint(
        # A clone as in `heun`.
        lambda t, state: evaluate(velocity, state, _batch_time(state, t)).clone(),
        x,
        times,
        rtol=rtol,
        atol=atol,
        method="dopri5",
        # It would step past the end and interpolate, on velocities of times above 1.
        options={"step_t": times[-1:]},
    )
    if observer is not None:
        for k, state in enumerate(states):
            observer(k, state, None)
    return states[-1]


class Solve(Protocol):
    """A solver of fixed steps, as a function."""

    def __call__(
        self,
        velocity: VelocityField,
        x: Tensor,
        timesteps: ArrayLike,
        *,
        observer: Observer | None = None,
    ) -> Tensor: ...


# The solvers of fixed steps by the name that a schedule carries.
SOLVERS: dict[str, Solve] = {name: partial(multistep, name) for name in LINEAR} | {"heun": heun}


def solver_of(schedule: Schedule) -> Solve:
    """The solver of a schedule, with its weights where they were fitted."""
    if schedule.weights is None:
        return SOLVERS[schedule.solver]
    return partial(multistep, schedule.solver, weights=schedule.weights)


def _batch_time(x: Tensor, t: float | Tensor) -> Tensor:
    """The time ``t`` for every sample of ``x``: shape (B,), in the dtype of ``x``."""
    if isinstance(t, Tensor):
        return t.to(x.dtype).expand(x.shape[0])
    return torch.full((x.shape[0],), t, dtype=x.dtype, device=x.device)
