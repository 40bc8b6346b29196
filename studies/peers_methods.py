"""The methods that `studies/peers.py` compares: what others would pick, and what is found here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.bellman.objectives import optimal_steps
from boss_core.checkpoints.load import Teacher
from boss_core.costs.fine_states import empty_states, fitting_noises
from boss_core.costs.matrix import CostMatrix, CostSum, add_trajectories
from boss_core.ode.noise import COSTS, NoiseSource
from boss_core.ode.solvers import ab2, euler, linear_step, multistep
from boss_core.ode.timesteps import Times, nearest_indices, uniform
from boss_core.ode.velocity import VelocityField, evaluate, with_labels
from boss_core.search.distances import endpoint_error
from boss_core.search.multistep import FineStates, with_weights
from boss_core.search.settings import SearchSettings
from boss_core.search.steps import FoundSteps
from studies.peers_joint import refine_jointly
from studies.peers_schedulers import (
    Make,
    deis,
    dpm_solver,
    drive,
    flow_match_euler,
    flow_match_heun,
    unipc,
)

Indices = tuple[int, ...]
Sampler = Callable[[VelocityField, Tensor], Tensor]  # from noise to final states

TEACHER = "teacher"
# Adams-Bashforth on equal steps, which iPNDM (Zhang and Chen 2023) takes on any.
ADAMS_BASHFORTH: dict[int, tuple[float, ...]] = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@torch.no_grad()
def ipndm(order: int, times: ArrayLike, velocity: VelocityField, x: Tensor) -> Tensor:
    """Fixed coefficients of Adams-Bashforth, of lower orders at the start, whatever the steps."""
    points = [float(t) for t in torch.as_tensor(times, dtype=torch.float64)]
    before: list[Tensor] = []
    for k, t in enumerate(points[:-1]):
        v = evaluate(velocity, x, x.new_full((len(x),), t)).clone()
        before = [v, *before][:order]
        x = linear_step(x, points[k + 1] - t, ADAMS_BASHFORTH[len(before)], before)
    return x


class Searches:
    """What a seed searches and fits, on noise of its own that nothing is sampled from; each thing
    when it is first asked for."""

    def __init__(
        self,
        teacher: Teacher,
        source: NoiseSource,
        budgets: Sequence[int],
        *,
        grid: int,
        costs: int,
        batch_size: int,
    ) -> None:
        self.teacher, self.source, self.budgets = teacher, source, budgets
        self.grid: Times = uniform(grid)
        self.costs, self.batch_size = costs, batch_size
        self._paths: dict[tuple[str, str, int], dict[int, Indices]] = {}
        self._fitted: dict[tuple[str, int], dict[int, Sampler]] = {}

    @cached_property
    def measured(self) -> tuple[CostMatrix, FineStates]:
        """The costs of all steps, and the fine states that weights are fitted to."""
        noise, labels = self.source.draw(range(self.costs), COSTS)
        kept = min(self.costs, fitting_noises(self.source.shape, len(self.grid) - 1, self.costs))
        states = empty_states(noise, kept, self.grid)
        total = CostSum(self.grid, noise.device)
        add_trajectories(
            total, self.teacher.velocity, noise,
            batch_size=self.batch_size, labels=labels, states=states,
        )  # fmt: skip
        return total.result(), FineStates(states, None if labels is None else labels[:kept])

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """As many noises again as the costs were measured on, labels, and where fine steps end."""
        noise, labels = self.source.draw(range(self.costs, 2 * self.costs), COSTS)
        return noise, labels, euler(with_labels(self.teacher.velocity, labels), noise, self.grid)

    def uniform(self, budget: int) -> Indices:
        """The grid points nearest to equal steps, which weights can be fitted at."""
        return nearest_indices(self.grid, uniform(budget))

    def best(
        self, budget: int, solver: str, objective: str = "l2_squared", order: int = 3
    ) -> Indices:
        """The steps of a solver that cost least."""
        key = (solver, objective, order)
        if key not in self._paths:
            found = optimal_steps(
                self.measured[0], self.budgets, objective=objective, solver=solver, order=order
            )
            self._paths[key] = {k: path.indices for k, path in found.items()}
        return self._paths[key][budget]

    def times(self, indices: Indices) -> Times:
        return self.grid[list(indices)]

    def fitted(self, budget: int, steps: str, order: int) -> Sampler:
        """Fitted weights on the steps of ``uniform``, ``euler``, ``ab2``, or their ``own``."""
        key = (steps, order)
        if key not in self._fitted:
            matrix, fine = self.measured
            paths = {k: FoundSteps(steps, self._steps(k, steps, order)) for k in self.budgets}
            settings = SearchSettings(solver="multistep", order=order, batch_size=self.batch_size)
            self._fitted[key] = {
                k: self._weighted(found)
                for k, found in with_weights(
                    self.teacher.velocity, matrix, paths, settings, self.source, fine
                ).items()
            }
        return self._fitted[key][budget]

    def _weighted(self, found: FoundSteps) -> Sampler:
        weights = found.fitted.weights if found.fitted else ()
        return partial(weighted, self.times(found.indices), weights)

    def _steps(self, budget: int, steps: str, order: int) -> Indices:
        if steps == "uniform":
            return self.uniform(budget)
        if steps == "own":
            return self.best(budget, "multistep", order=order)
        if steps == "joint":
            return self._joint(budget, order)
        return self.best(budget, steps)

    def _joint(self, budget: int, order: int) -> Indices:
        """From their own steps on, one knot at a time: weights are fitted anew for every candidate,
        and what is nearest to the teacher's ends from as many other noises is kept."""
        matrix, fine = self.measured
        settings = SearchSettings(solver="multistep", order=order, batch_size=self.batch_size)
        noise, labels, ends = self.held_out
        distance = endpoint_error(ends)

        def off(indices: Indices) -> float:
            paths = {budget: FoundSteps("joint", indices)}
            (found,) = with_weights(
                self.teacher.velocity, matrix, paths, settings, self.source, fine
            ).values()
            x = self._weighted(found)(with_labels(self.teacher.velocity, labels), noise)
            return float(distance(x[None])[0])

        return refine_jointly(self.best(budget, "multistep", order=order), off)


def weighted(
    times: Times, weights: Sequence[Sequence[float]], velocity: VelocityField, x: Tensor
) -> Tensor:
    """The final states with fitted weights."""
    return multistep("multistep", velocity, x, times, weights=weights)


def _on(solve: Callable[..., Tensor], times: Times, velocity: VelocityField, x: Tensor) -> Tensor:
    return solve(velocity, x, times)


@dataclass(frozen=True)
class Method:
    """One way to sample in K evaluations.

    about: what it is, in a few words. ours: found by this project. sampler: for a budget, by the
    searches of a seed. fitted: the steps and the order of fitted weights, for the study of them.
    """

    about: str
    ours: bool
    sampler: Callable[[Searches, int], Sampler]
    fitted: tuple[str, int] | None = None


def _peer(about: str, make: Make) -> Method:
    return Method(about, False, lambda searches, k: partial(drive, make, k))


def _fitted(steps: str, order: int, of: str) -> Method:
    return Method(
        f"fitted weights, {order} velocities, {of}",
        True,
        lambda searches, k: searches.fitted(k, steps, order),
        (steps, order),
    )


STEPS = {
    "own": "their own steps",
    "uniform": "uniform steps, to the nearest of the grid",
    "euler": "Euler's Bellman steps",
    "ab2": "ab2's Bellman steps",
    "joint": "their own steps refined with weights fitted anew, by the ends of other noise",
}
METHODS: dict[str, Method] = {
    "unipc_2": _peer("diffusers UniPC, order 2", unipc(2)),
    "unipc_3": _peer("diffusers UniPC, order 3", unipc(3)),
    "dpm_solver_2m": _peer("diffusers DPM-Solver++ 2M", dpm_solver(2)),
    "dpm_solver_3m": _peer("diffusers DPM-Solver++ 3M", dpm_solver(3)),
    "deis_3": _peer("diffusers DEIS, order 3, as it comes", deis(3)),
    "deis_3_to_the_end": _peer(
        "the same with a last noise level of 0.0001", deis(3, to_the_end=True)
    ),
    "flow_match_euler_1": _peer("diffusers FlowMatchEuler, shift 1", flow_match_euler(1.0)),
    "flow_match_euler_3": _peer("diffusers FlowMatchEuler, shift 3", flow_match_euler(3.0)),
    "flow_match_heun": _peer("diffusers FlowMatchHeun", flow_match_heun),
    "ipndm_3": Method(
        "iPNDM (LMS), order 3, uniform steps", False,
        lambda searches, k: partial(ipndm, 3, uniform(k)),
    ),
    "ipndm_4": Method(
        "iPNDM (LMS), order 4, uniform steps", False,
        lambda searches, k: partial(ipndm, 4, uniform(k)),
    ),
    "gits_ipndm_3": Method(
        "GITS: its objective's steps, iPNDM of order 3", False,
        lambda searches, k: partial(
            ipndm, 3, searches.times(searches.best(k, "euler", "gits"))
        ),
    ),
    "euler_uniform": Method(
        "Euler, uniform steps", False, lambda searches, k: partial(_on, euler, uniform(k))
    ),
    "euler_bellman": Method(
        "Euler, Bellman's steps: the paper without its training", False,
        lambda searches, k: partial(_on, euler, searches.times(searches.best(k, "euler"))),
    ),
    "ab2": Method(
        "two-step Adams-Bashforth, its own Bellman steps", True,
        lambda searches, k: partial(_on, ab2, searches.times(searches.best(k, "ab2"))),
    ),
    **{
        f"multistep_{order}_{steps}": _fitted(steps, order, of)
        for order in (3, 2)
        for steps, of in STEPS.items()
        if (order, steps) != (2, "joint")  # minutes for what the third velocity brings for nothing
    },
}  # fmt: skip
# What this project would tell a user to take: the others of ours are the study of steps.
OURS = ("ab2", "multistep_3_own")
