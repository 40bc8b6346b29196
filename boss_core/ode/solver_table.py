"""What the rest of the library has to know of a solver, once for each. Imports no torch.

A step of a linear multistep method from knot k, of length h_k, is a sum of velocities at the knots
so far,

    x_{k+1} = x_k + h_k (w_0 v_k + w_1 v_{k-1} + ...),   w_0 + w_1 + ... = 1,

whose weights depend on the lengths of the steps alone, or were fitted to a network and belong to
the schedule (`boss_core.costs.fit`). To add one, write its weights and an entry in `_TABLE`:
sampling, the searches, straightening and the exports read it there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from boss_core.errors import InputError

# From the lengths of the step to take and of those before it, the latest first and as many as there
# are, numbers or arrays that broadcast, to as many weights.
Weights = Callable[[Sequence[Any]], tuple[Any, ...]]


@dataclass(frozen=True)
class Solver:
    """A solver of fixed steps.

    name: what schedules, parameters and options call it.
    evaluations: of the network in one step.
    looks_back: how many velocities of earlier knots a step uses, where there are as many.
    weights: of a linear multistep method, where they follow from the lengths of its steps.
    fitted: a linear multistep method whose weights come with each schedule. Only for linear
        multistep methods can steps be searched from trajectories alone, a network be straightened,
        and a scheduler of diffusers keep the velocities; other steps evaluate the network between
        knots.
    largest_grid: the most steps of a fine grid to search on, where a cost is kept for every three
        points of it; None for no limit.
    diffusers: whether a class of diffusers takes such steps at sigmas that it is given.
    comfyui: the sampler of ComfyUI that takes them, in a few words; None where there is none.
    ode_solver: the method of `flow_matching.solver.ODESolver`; None where there is none.
    """

    name: str
    evaluations: int
    looks_back: int
    weights: Weights | None = None
    fitted: bool = False
    largest_grid: int | None = None
    diffusers: bool = False
    comfyui: str | None = None
    ode_solver: str | None = None

    @property
    def linear(self) -> bool:
        """Whether it is a linear multistep method."""
        return self.fitted or self.weights is not None


def _euler(lengths: Sequence[Any]) -> tuple[Any, ...]:
    return (1.0,)


def _ab2(lengths: Sequence[Any]) -> tuple[Any, ...]:
    """Two-step Adams-Bashforth with unequal steps; Euler without a step before (Hairer, Norsett
    and Wanner, Solving ODEs I, III.5)."""
    if len(lengths) < 2:
        return (1.0,)
    w = lengths[0] / (2.0 * lengths[1])
    return (1.0 + w, -w)


_TABLE = (
    Solver(
        name="euler",
        evaluations=1,
        looks_back=0,
        weights=_euler,
        diffusers=True,
        comfyui="sampler euler",
        ode_solver="euler",
    ),
    Solver(
        name="ab2",
        evaluations=1,
        looks_back=1,
        weights=_ab2,
        largest_grid=300,  # 36 MB of costs, and of 20 groups of trajectories 720 MB
        comfyui="the sampler of node SamplerLMS with order 2",
    ),
    # Weights by least squares on the teacher's trajectories; up to three velocities a step.
    Solver(
        name="multistep",
        evaluations=1,
        looks_back=2,
        fitted=True,
        largest_grid=100,  # a cost for every four points: 34 MB, and a third of a second for each K
    ),
    # ComfyUI's heun takes its last step by Euler; diffusers' takes no sigmas.
    Solver(name="heun", evaluations=2, looks_back=0, ode_solver="heun2"),
)
SOLVERS = {solver.name: solver for solver in _TABLE}
# Linear multistep methods, and those of them whose weights follow from the lengths of the steps.
LINEAR = tuple(name for name, solver in SOLVERS.items() if solver.linear)
MULTISTEP = tuple(name for name in LINEAR if not SOLVERS[name].fitted)
# Velocities of a step with fitted weights, at most: on CIFAR-10 more were no better than three.
LARGEST_ORDER = SOLVERS["multistep"].looks_back + 1
# Those that steps are searched for.
SEARCHED = tuple(name for name in LINEAR if SOLVERS[name].fitted or SOLVERS[name].looks_back <= 1)


def solver_named(name: str) -> Solver:
    """The record of a solver; InputError for a name that is not known."""
    if name not in SOLVERS:
        raise InputError(f"solver: {name!r}; {', '.join(SOLVERS)} known")
    return SOLVERS[name]


def multistep_weights(name: str) -> Weights:
    """The weights of a linear multistep method; InputError for any other solver."""
    weights = SOLVERS[name].weights if name in SOLVERS else None
    if weights is None:
        raise InputError(f"solver: {name!r}; {' or '.join(MULTISTEP)} needed")
    return weights


def weights_of_steps(name: str, lengths: Sequence[float]) -> list[tuple[float, ...]]:
    """The weights of every step of a schedule with these lengths, in order: of step k those of the
    velocities at knots k, k - 1, ..., as far as the solver looks back."""
    weights, back = multistep_weights(name), SOLVERS[name].looks_back
    return [
        tuple(weights(tuple(lengths[k - i] for i in range(min(k, back) + 1))))
        for k in range(len(lengths))
    ]


def steps_of(budget: int, solver: str) -> int:
    """The number of steps that a budget of network evaluations pays for. InputError for an
    unknown solver, and when evaluations would be left over."""
    each = solver_named(solver).evaluations
    if budget < 1 or budget % each:
        raise InputError(
            f"budget: {budget} evaluations; a positive multiple of {each}, what a step of {solver}"
            " takes, needed"
        )
    return budget // each
