"""The schedules that students are straightened for."""

from collections.abc import Sequence
from pathlib import Path

from boss_core.bellman.names import GITS_GAMMA
from boss_core.errors import InputError
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import uniform
from boss_core.search.settings import FEWEST
from boss_core.training import distributed
from flows.config import ScheduleSearch
from flows.search.diffusers_schedule import pipeline_key, search_pipeline_steps
from flows.search.export import read_schedule
from flows.straighten.request import PipelineRequest
from flows.straighten.teacher import PipelineTeacher


def schedules_of(
    teacher: PipelineTeacher, asked: PipelineRequest, budgets: Sequence[int]
) -> dict[int, Schedule]:
    """A schedule for each budget, whose times are points of the grid."""
    if asked.steps == "uniform":
        return {budget: uniform_schedule(asked, budget) for budget in budgets}
    if asked.steps == "search":
        return searched(teacher, asked, budgets)
    (budget,) = budgets
    return {budget: _given(asked, Path(asked.steps), budget)}


def uniform_schedule(asked: PipelineRequest, budget: int) -> Schedule:
    """Equal steps, as near as the grid has them."""
    indices = tuple(round(asked.grid * k / budget) for k in range(budget + 1))
    grid = uniform(asked.grid)
    return Schedule(
        timesteps=tuple(float(grid[i]) for i in indices),
        indices=indices,
        solver=asked.solver,
        objective="uniform",
    )


def _given(asked: PipelineRequest, path: Path, budget: int) -> Schedule:
    """The schedule in a file, on this grid; InputError where its times are no points of it."""
    there = read_schedule(path)
    if there.steps != budget:
        raise InputError(f"--steps: {path} has {there.steps} steps; --budget {there.steps} needed")
    if there.solver != asked.solver:
        raise InputError(f"--steps: {path} is for {there.solver}; --solver {there.solver} needed")
    indices = tuple(round(t * asked.grid) for t in there.timesteps)
    grid = uniform(asked.grid)
    far = max(abs(float(grid[i]) - t) for i, t in zip(indices, there.timesteps, strict=True))
    if far > 1e-9:
        raise InputError(
            f"--steps: {path}: times that are no points of a grid of {asked.grid} steps (off by up"
            f" to {far:.2g}); the --grid that they were searched on needed"
        )
    return there.model_copy(update={"indices": indices})


def guided_steps(
    teacher: PipelineTeacher, asked: PipelineRequest, schedule: Schedule, evaluations: float
) -> Schedule | None:
    """The steps of the guided pipeline for as many evaluations as the student takes; None where
    those are its own steps, or less than one.

    evaluations: of the guided pipeline on the student's schedule."""
    budget = int(schedule.steps * schedule.steps * teacher.student_nfe / evaluations)
    if not 1 <= budget < schedule.steps:
        return None
    if asked.steps == "search":
        return searched(teacher, asked, [budget])[budget]
    return uniform_schedule(asked, budget)


def searched(
    teacher: PipelineTeacher, asked: PipelineRequest, budgets: Sequence[int]
) -> dict[int, Schedule]:
    """The best steps by the costs of the teacher, in ``search/`` of the run's folder: by the main
    process, for which the others wait."""
    folder = asked.out / "search"
    if distributed.own_share().rank == 0:
        batch_size = asked.training.batch_size
        wanted = ScheduleSearch(
            solver=asked.solver,
            objective="l2_squared",
            gamma=GITS_GAMMA,
            distance="sliced_wasserstein",
            lpips="",
            samples=FEWEST,
            batch_size=batch_size,
        )
        key = pipeline_key(
            teacher.hash, teacher.training, asked.teacher.dtype,
            grid=asked.grid, spacing="uniform", seed=asked.seed,
        )  # fmt: skip
        search_pipeline_steps(
            teacher.pipeline, key, teacher.training, folder,
            budgets=budgets, wanted=wanted, samples=asked.samples, replace=True,
        )  # fmt: skip
    distributed.wait()
    return {budget: read_schedule(folder / f"{budget}.json") for budget in budgets}
