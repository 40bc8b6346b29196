"""The trajectories of a diffusers pipeline: its states at the knots of all schedules, a file for
each call."""

import os
from collections.abc import Sequence
from functools import partial

from boss_core.io.files import replacing_folder
from boss_core.ode.noise import TRAJECTORIES, seed_for
from boss_core.ode.timesteps import uniform
from boss_core.training.settings import training_share
from flows import paths
from flows.config import Params
from flows.measure.energy import measured
from flows.measure.usage import write_usage
from flows.records.json_files import write_json
from flows.stages.pipelines.opened import as_parameters, open_teacher
from flows.straighten.rollouts import Rollout, roll_out
from flows.straighten.teacher import PipelineTeacher, encode_all


def write_trajectories(params: Params, knots: Sequence[int], *, adapters: bool) -> None:
    """trajectories/: the teacher's states at these points of the grid. adapters: whether any of
    the students is one, which not all pipelines take."""
    of = params.trajectories
    teacher, _ = open_teacher(params, batch_size=of.batch_size, rank=1 if adapters else None)
    training, validation = groups_of(params, teacher)
    groups = (*training, *validation)
    # From which a stage that was killed goes on.
    begun = paths.rollout_begun()
    went_on = begun.exists()
    offset = seed_for(TRAJECTORIES, params.seed)
    with (
        as_parameters(batch_size="trajectories.batch_size"),
        measured(teacher.device, of.samples) as usage,
    ):
        calls = [partial(teacher.training.call, group, seed=offset) for group in groups]
        encode_all(teacher.pipeline, calls)
        rollout = Rollout(begun, groups, tuple(knots))
        roll_out(teacher, rollout, uniform(params.cost.grid), params.seed)
    with replacing_folder(paths.TRAJECTORIES) as folder:
        for path in sorted(begun.iterdir()):
            os.replace(path, folder / path.name)
        of_states = {
            "knots": list(knots),
            "samples": of.samples,
            "teacher_hash": teacher.hash,
        }
        write_json(folder / "card.json", of_states)
    begun.rmdir()
    write_usage("trajectories", {"generation": None if went_on else usage})


def groups_of(
    params: Params, teacher: PipelineTeacher
) -> tuple[tuple[range, ...], tuple[range, ...]]:
    """The samples of each call: of those to learn from, and of those to validate on."""
    of = params.trajectories
    first = training_share(of.samples, of.validation_fraction)
    training, validation = (
        tuple(teacher.training.parts(part, of.batch_size))
        for part in (range(first), range(first, of.samples))
    )
    return training, validation
