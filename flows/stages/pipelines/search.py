"""The costs of a diffusers pipeline's steps, and the steps that need the pipeline to be found."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

import numpy as np

from boss_core.bellman.names import GITS_GAMMA
from boss_core.bellman.recursion import Path as Steps
from boss_core.costs.cost_file import CostKey
from boss_core.costs.matrix import CostMatrix
from boss_core.io.files import replacing
from boss_core.ode.schedule import Schedule
from boss_core.search.settings import FEWEST
from boss_core.search.steps import FoundSteps
from flows import paths
from flows.config import Params, ScheduleSearch
from flows.measure.energy import measured
from flows.measure.usage import write_usage
from flows.records.json_files import read_json
from flows.records.teachers import CARD
from flows.search.diffusers_schedule import find_pipeline_steps, pipeline_costs, pipeline_key
from flows.search.pipeline_call import SampleCalls
from flows.search.schedule import COST
from flows.stages.pipelines.opened import as_parameters, open_teacher

# Of what is measured until the steps of these budgets settle: as for networks.
BUDGETS = tuple(range(2, 11))


def write_pipeline_costs(params: Params) -> None:
    """results/cost.npz, with the evaluations that each step takes, ``nfe``."""
    of = params.cost
    teacher, asked = open_teacher(params, batch_size=of.batch_size)
    dtype = asked.teacher.dtype
    key = pipeline_key(
        teacher.hash, teacher.training, dtype, grid=of.grid, spacing="uniform", seed=params.seed
    )
    wanted = ScheduleSearch(
        solver="euler",
        objective="l2_squared",
        gamma=GITS_GAMMA,
        distance="sliced_wasserstein",
        lpips="",
        samples=FEWEST,
        batch_size=of.batch_size,
    )
    samples = None if of.samples == "auto" else int(of.samples)
    content = json.dumps([asdict(key), samples, of.batch_size], sort_keys=True)
    # From which a stage that was killed goes on.
    folder = paths.costs_begun(hashlib.sha256(content.encode()).hexdigest()[:16])
    folder.mkdir(parents=True, exist_ok=True)
    went_on = (folder / COST).is_file()
    with as_parameters(batch_size="cost.batch_size"), measured(teacher.device) as usage:
        matrix, found = pipeline_costs(
            teacher.pipeline, key, folder, teacher.training,
            budgets=[k for k in BUDGETS if k <= of.grid], wanted=wanted, samples=samples,
        )  # fmt: skip
    usage.images = matrix.samples
    with np.load(folder / COST) as file:
        arrays = dict(file)
    with replacing(paths.COST) as temporary, open(temporary, "wb") as out:
        np.savez(out, **arrays, nfe=found.nfe)
    shutil.rmtree(folder.parent)
    write_usage("cost", {"search": None if went_on else usage})


def pipeline_steps(
    params: Params, matrix: CostMatrix, key: CostKey
) -> Iterator[tuple[int, FoundSteps]]:
    """As `flows.stages.schedule.chosen_steps`: ``auto`` samples with the pipeline."""
    of = params.schedule
    if of.objective != "auto":
        yield from find_pipeline_steps(None, key, matrix, params.budgets, of, SampleCalls([]))
        return
    teacher, _ = open_teacher(params, batch_size=of.batch_size)
    with as_parameters(batch_size="schedule.batch_size"):
        yield from find_pipeline_steps(
            teacher.pipeline, key, matrix, params.budgets, of, teacher.training
        )


def with_evaluations(
    found: Mapping[int, Mapping[str, Schedule]],
    best: Mapping[int, Steps],
    build: Callable[[FoundSteps], Schedule],
) -> dict[int, dict[str, Schedule]]:
    """The schedules with the evaluations that the guided pipeline takes for them; beside them
    ``fewer``, Bellman's for no more than the student takes, where guidance makes a difference.

    best: the best steps of every budget up to the largest."""
    card = read_json(CARD)
    with np.load(paths.COST) as file:
        nfe = file["nfe"]

    def counted(schedule: Schedule) -> Schedule:
        evaluations = round(float(nfe[list(schedule.indices[:-1])].sum()), 6)
        return schedule.model_copy(update={"evaluations": evaluations})

    result = {}
    for budget, named in found.items():
        of_budget = {name: counted(schedule) for name, schedule in named.items()}
        if card["without_guidance"]:
            spent = of_budget["bellman"].evaluations
            assert spent is not None
            # At K = 1 there are no fewer.
            steps = max(1, int(budget * budget * card["student_nfe"] / spent))
            of_budget["fewer"] = counted(build(FoundSteps("l2_squared", best[steps].indices)))
        result[budget] = of_budget
    return result
