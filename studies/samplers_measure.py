"""The searches and measurements of `studies/samplers.py`. Knows no files but its inputs."""

import copy
import itertools
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.bellman.names import OBJECTIVES
from boss_core.bellman.objectives import (
    StepCosts,
    optimal_steps,
    path_values,
    step_costs,
)
from boss_core.checkpoints.folder import Network
from boss_core.costs.heun import HeunCosts, estimate_heun_costs
from boss_core.costs.matrix import CostMatrix, estimate_cost_matrix
from boss_core.ode.noise import COSTS, EVALUATION, SEARCH, TRAJECTORIES, sample_labels
from boss_core.ode.schedule import Schedule
from boss_core.ode.solver_table import steps_of
from boss_core.ode.solvers import SOLVERS, rk45
from boss_core.ode.timesteps import nearest_indices, uniform, union
from boss_core.ode.velocity import Velocity
from boss_core.search.choose import Reference, choose, roll_out
from boss_core.search.distances import Distance
from boss_core.search.forward import oss_paths
from boss_core.search.refine import refine
from boss_core.straightening.segments import Segments, knot_states
from boss_core.training.loop import train
from boss_core.training.settings import training_share
from studies.samplers import AUTO, CANDIDATES, REFINED
from studies.samplers_bench import Bench, Row

if TYPE_CHECKING:
    from studies.samplers import Cell

Indices = tuple[int, ...]

# Heun's costs take 50 times the evaluations of Euler's: they are measured on fewer noises.
HEUN_SAMPLES = 32
REFINE_STARTS = ("l2_squared", "uniform")
HELD_OUT = 2  # of as many noises as others are searched on, ``auto`` compares on so many times
# For the estimate: passes over all knots that a refinement takes from a start.
REFINE_SWEEPS = 4


def evaluations(bench: Bench, cells: Sequence["Cell"]) -> int:
    """About how many evaluations on one sample these measurements and their searches take."""
    n, total = len(bench.grid) - 1, 0
    budget = max((cell.budget for cell in cells if cell.objective == "oss"), default=0)
    for _, of_seed in itertools.groupby(cells, key=lambda cell: cell.seed):
        total += n * (2 * bench.search_samples + bench.samples)
        searched: set[tuple[str, str]] = set()
        for cell in of_seed:
            steps = cell.budget or n
            total += steps * (bench.samples + bench.search_samples)
            if cell.network == "student" and bench.params is not None:
                training = bench.params.finetune.training
                total += 3 * training.iterations * training.batch_size
                if ("student", "") not in searched:
                    total += n * bench.params.trajectories.samples
                    searched.add(("student", ""))
            elif cell.objective in REFINED:
                # Two moves of each knot, each with half of the steps to do again.
                total += len(REFINE_STARTS) * REFINE_SWEEPS * steps**2 * bench.search_samples
            elif cell.objective in AUTO:
                if ("auto", "") not in searched:
                    total += HELD_OUT * n * bench.search_samples
                    searched.add(("auto", ""))
                total += HELD_OUT * (len(CANDIDATES) + 1) * steps * bench.search_samples
            elif cell.objective == "oss" and (cell.solver, "oss") not in searched:
                total += budget * n * bench.search_samples
                searched.add((cell.solver, "oss"))
            elif cell.solver == "heun" and ("heun", "") not in searched:
                total += n * n // 2 * min(HEUN_SAMPLES, bench.search_samples)
                searched.add(("heun", ""))
    return total


class Seed:
    """The measurements of one seed. What they share is made when first needed: costs and the
    reference path's ends on the search noise, its ends on the evaluation noise, and searches."""

    def __init__(
        self, bench: Bench, seed: int, known: Iterable[Row], cells: Sequence["Cell"]
    ) -> None:
        """``known``: rows of this seed, whose schedules are not searched again; ``cells``: all
        measurements planned for it."""
        self.bench, self.seed, self.cells = bench, seed, cells
        self.searched: dict[tuple[str, str, int], Row] = {}
        self.measured: dict[tuple[str, Indices], Row] = {}
        self.students: dict[tuple[str, Indices], Network] = {}
        self.step_costs: dict[tuple[str, str], StepCosts] = {}
        for row in known:
            if row["network"] == "teacher" and not row["floor"]:
                self.searched[row["solver"], row["objective"], row["budget"]] = row

    def measure(self, cell: "Cell") -> Row:
        """The row of a cell, without its names."""
        if cell.objective == "floor":
            return self.floor(cell.solver)
        found = self.search(cell.solver, cell.objective, cell.budget)
        indices = tuple(found["indices"])
        search = {name: found[name] for name in found if name.startswith("search_")}
        row: Row = {"floor": False, "evaluations": cell.budget, "indices": list(indices), **search}
        if cell.network == "student":
            network = self.student(cell.solver, indices)
            return row | self.quality(network, cell.solver, indices)
        key = (cell.solver, indices)
        if key not in self.measured:  # objectives may agree
            self.measured[key] = self.predict(*key) | self.quality(self.bench.velocity, *key)
        return row | self.measured[key]

    # What is shared.

    @cached_property
    def search_noise(self) -> tuple[Tensor, Tensor | None]:
        return self.bench.noise(self.seed + COSTS, self.bench.search_samples)

    @cached_property
    def search_ends(self) -> Tensor:
        """The reference path's ends on the search noise."""
        return self.ends("euler", self.bench.grid, self.search_noise)

    @cached_property
    def held_out(self) -> Reference:
        """The reference path's ends on noise that nothing is searched on."""
        bench = self.bench
        noise, labels = bench.noise(self.seed + SEARCH, HELD_OUT * bench.search_samples)
        return roll_out(
            bench.velocity, noise, bench.grid, batch_size=bench.batch_size, labels=labels
        )

    @cached_property
    def noise(self) -> tuple[Tensor, Tensor | None]:
        return self.bench.noise(self.seed + EVALUATION, self.bench.samples)

    @cached_property
    def fine(self) -> Tensor:
        """The reference path's ends on the evaluation noise."""
        return self.ends("euler", self.bench.grid, self.noise)

    @cached_property
    def matrix(self) -> CostMatrix:
        bench, (noise, labels) = self.bench, self.search_noise
        return estimate_cost_matrix(
            bench.velocity, noise, bench.grid, batch_size=bench.batch_size, labels=labels
        )

    @cached_property
    def heun_costs(self) -> HeunCosts:
        bench, (noise, labels) = self.bench, self.search_noise
        return estimate_heun_costs(
            bench.velocity,
            noise[:HEUN_SAMPLES],
            bench.grid,
            batch_size=bench.batch_size,
            labels=None if labels is None else labels[:HEUN_SAMPLES],
        )

    def costs(self, solver: str, objective: str) -> StepCosts:
        """The costs of all steps of a solver in the measure of an objective."""
        if (solver, objective) not in self.step_costs:
            heun = self.heun_costs if solver == "heun" else None
            self.step_costs[solver, objective] = step_costs(
                self.matrix, objective=objective, solver=solver, heun_costs=heun
            )
        return self.step_costs[solver, objective]

    @cached_property
    def to_ends(self) -> dict[str, Distance]:
        """Distances to the reference path's ends on the search noise."""
        return {name: to(self.search_ends) for name, to in self.bench.distances.items()}

    def ends(
        self,
        solver: str,
        timesteps: ArrayLike,
        start: tuple[Tensor, Tensor | None],
        velocity: Velocity | None = None,
    ) -> Tensor:
        """Final states of the teacher, or of another velocity."""
        velocity = self.bench.velocity if velocity is None else velocity
        return self.bench.ends(lambda v, x: SOLVERS[solver](v, x, timesteps), velocity, start)

    # Searches.

    def search(self, solver: str, objective: str, budget: int) -> Row:
        """``indices`` of a schedule, and what its search cost for each of ``search_samples``
        noises: ``search_path`` evaluations once for all budgets and ``search_evaluations`` beyond
        that, for all budgets together where it is ``search_shared``."""
        key = (solver, objective, budget)
        if key not in self.searched:
            self.searched |= self._search(solver, objective, budget)
        return self.searched[key]

    # Longer than others: one branch for each way of searching that the page compares.
    def _search(self, solver: str, objective: str, budget: int) -> dict[tuple[str, str, int], Row]:
        bench, (noise, labels), n = self.bench, self.search_noise, len(self.bench.grid) - 1
        on: Row = {"solver": solver, "batch_size": bench.batch_size, "labels": labels}
        samples, shared = len(noise), True
        # Made before the clock starts: searches share it.
        matrix, to_ends = self.matrix, self.to_ends
        heun = self.heun_costs if solver == "heun" else None
        before_it: tuple[str, ...] = REFINE_STARTS if objective in REFINED else ()
        if objective in AUTO:
            before_it = (*CANDIDATES, AUTO[objective])
        others = {name: self.search(solver, name, budget) for name in before_it}
        held_out = self.held_out if objective in AUTO else None
        budgets = sorted({
            cell.budget for cell in self.cells
            if (cell.solver, cell.objective) == (solver, objective)
        } | {budget})  # fmt: skip
        if bench.device.type == "cuda":
            torch.cuda.synchronize()  # what was made before is done before
        before, start = bench.velocity.samples, time.perf_counter()
        path = n  # evaluations of the reference path, which most searches have to know
        if objective == "uniform":
            steps = uniform(steps_of(budget, solver))
            found = {budget: nearest_indices(bench.grid, steps)}
            shared, path = False, 0
        elif objective in REFINED:
            starts = [row["indices"] for row in others.values()]
            distance = to_ends[REFINED[objective]]
            best = refine(bench.velocity, noise, bench.grid, starts, distance, **on)
            found, shared = {budget: best.indices}, False
        elif held_out is not None:
            candidates = {name: row["indices"] for name, row in others.items()}
            choice = choose(
                bench.velocity, bench.grid, candidates, held_out,
                distance=bench.distances[REFINED[AUTO[objective]]],
                solver=solver, batch_size=bench.batch_size,
            )  # fmt: skip
            found, shared = {budget: choice.indices}, False
            path += HELD_OUT * n
        elif objective == "oss":
            paths = oss_paths(bench.velocity, noise, bench.grid, budgets, **on)
            found, path = {k: paths[k].indices for k in budgets}, 0  # it rolls out its own
        else:
            if heun is not None:
                samples, path = heun.samples, n * (n + 1) // 2 + 1
            paths = optimal_steps(
                matrix, budgets, objective=objective, solver=solver, heun_costs=heun
            )
            found = {k: paths[k].indices for k in budgets}
        seconds = time.perf_counter() - start
        # What its candidates took is part of its search; the forward recursion serves all budgets.
        theirs = sum(
            row["search_evaluations"] / (len(budgets) if row["search_shared"] else 1)
            for row in (others.values() if objective in AUTO else ())
        )
        return {
            (solver, objective, k): {
                "indices": list(indices),
                "search_samples": 0 if objective == "uniform" else samples,
                "search_path": path,
                "search_evaluations": round((bench.velocity.samples - before) / samples + theirs),
                "search_shared": shared,
                "search_seconds": round(seconds / len(found), 3),
            }
            for k, indices in found.items()
        }

    # Measurements.

    def predict(self, solver: str, indices: Indices) -> Row:
        """What each objective says of a schedule, on the search noise."""
        found: Row = {
            name: path_values(self.costs(solver, name), indices, objective=name)[0]
            for name in OBJECTIVES
        }
        ends = self.ends(solver, self.bench.grid[list(indices)], self.search_noise)
        found["endpoint_error"] = (ends - self.search_ends).double().square().mean().sqrt()
        found |= {name: apart(ends[None]) for name, apart in self.to_ends.items()}
        return {f"predicted_{name}": float(value) for name, value in found.items()}

    def quality(self, velocity: Velocity, solver: str, indices: Indices) -> Row:
        """The metrics of a network with a schedule, on the evaluation noise."""
        ends = self.ends(solver, self.bench.grid[list(indices)], self.noise, velocity)
        return self.bench.quality(ends, self.fine, self.seed)

    def floor(self, solver: str) -> Row:
        """The metrics of the teacher with many evaluations."""
        bench = self.bench
        if solver == "euler":
            ends, evaluations = self.fine, len(bench.grid) - 1
        else:
            before = bench.velocity.samples
            if solver == "rk45":
                ends = bench.ends(rk45, bench.velocity, self.noise)
            else:
                ends = self.ends(solver, bench.grid, self.noise)
            evaluations = round((bench.velocity.samples - before) / bench.samples)
        metrics = bench.quality(ends, self.fine, self.seed)
        return {"floor": True, "indices": [], "evaluations": evaluations, **metrics}

    # Students.

    def student(self, solver: str, indices: Indices) -> Network:
        """The teacher straightened for a schedule, as `flows.stages.finetune` does it."""
        if (solver, indices) not in self.students:
            schedule = Schedule(
                timesteps=tuple(float(t) for t in self.bench.grid[list(indices)]),
                indices=indices,
                solver=solver,
                objective="study",
            )
            self.students[solver, indices] = self._straighten(schedule)
        return self.students[solver, indices]

    @cached_property
    def trajectories(self) -> tuple[np.ndarray, Indices, np.ndarray | None]:
        """The teacher's states at the knots of every schedule that is straightened for."""
        bench, params = self.bench, self.bench.params
        assert params is not None
        knots = union([
            self.search(cell.solver, cell.objective, cell.budget)["indices"]
            for cell in self.cells if cell.network == "student"
        ])  # fmt: skip
        count, seed = params.trajectories.samples, self.seed + TRAJECTORIES
        states = np.empty((count, len(knots), *bench.real.shape[1:]), dtype=np.float32)
        labels = None
        if bench.frequencies is not None:
            labels = sample_labels(
                range(count), len(bench.frequencies), seed, frequencies=bench.frequencies
            )
        knot_states(
            bench.velocity,
            bench.grid,
            knots,
            states,
            seed=seed,
            batch_size=params.trajectories.batch_size,
            device=bench.device,
            labels=labels,
        )
        return states, knots, None if labels is None else labels.numpy()

    def _straighten(self, schedule: Schedule) -> Network:
        params, device = self.bench.params, self.bench.device
        assert params is not None
        states, knots, labels = self.trajectories
        segments = Segments.of(states, knots, schedule, labels, device=device)
        settings, training = (
            params.finetune.training,
            training_share(params.trajectories.samples, params.trajectories.validation_fraction),
        )
        loss = segments.training_loss(
            seed=self.seed, trajectories=training, batch_size=settings.batch_size
        )
        network = copy.deepcopy(self.bench.network).requires_grad_(True)
        compute = params.compute
        trained = train(
            network, loss, settings, precision=compute.precision, compile=compute.compile
        )
        return trained.network
