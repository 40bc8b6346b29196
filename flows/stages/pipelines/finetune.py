"""Students of a diffusers pipeline for one budget: its LoRA, or all its weights, straightened for
the steps of each method."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from boss_core.interop.pipeline_lora import (
    TrainedWeights,
    add_lora,
    all_weights,
    denoisers,
    freeze,
    remove_lora,
)
from boss_core.interop.pipeline_students import Groups, train_student
from boss_core.io.files import sha256
from boss_core.ode.noise import TRAJECTORIES, seed_for
from boss_core.ode.schedule import Schedule
from boss_core.training import distributed
from boss_core.training.loop import Row
from boss_core.training.resume import Checkpoints
from flows import paths
from flows.config import Params
from flows.measure.energy import Usage, measured
from flows.records.json_files import read_json
from flows.records.variants import Variant
from flows.search.refusals import pipeline_refusals
from flows.stages.pipelines.opened import as_parameters, open_teacher
from flows.stages.pipelines.students import write_student
from flows.stages.pipelines.trajectories import groups_of
from flows.stages.runner import is_main
from flows.stages.training import checkpoints, training_progress
from flows.straighten.processes import say
from flows.straighten.rollouts import KEY, Rollout
from flows.straighten.teacher import PipelineTeacher, encode_all


@dataclass
class Finetuned:
    """Of each student its curve, and what its training took, None where it went on from a
    checkpoint; and the checkpoints, of no use once all is written."""

    curves: dict[str, list[Row]]
    taken: dict[str, Usage | None]
    kept: list[Checkpoints]


def finetune(
    params: Params, budget: int, wanted: Mapping[str, Variant], schedules: Mapping[str, Schedule]
) -> Finetuned:
    """Train these students, and write each into its folder."""
    teacher, asked = open_teacher(params, batch_size=params.trajectories.batch_size, trains=True)
    rollout, training_calls = _rollout(params, teacher)
    found = Finetuned({}, {}, [])
    # Where schedules are the same, so are their students: at one step every solver is Euler.
    alike: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, variant in wanted.items():
        schedule = schedules[variant.schedule]
        solver = schedule.solver if schedule.steps > 1 else "euler"
        alike[variant.adapter, schedule.indices, solver].append(name)
    # Those of all weights first: peft leaves its layers in the networks, whose weights then would
    # be written by other names.
    for names in sorted(alike.values(), key=lambda names: wanted[names[0]].adapter):
        variant, label = wanted[names[0]], f"finetune@{budget} {names[0]}"
        schedule = schedules[variant.schedule]
        run = {
            "label": label,
            "schedule": schedule.model_dump(mode="json"),
            "teacher": teacher.hash,
            "rollout": sha256(paths.TRAJECTORIES / KEY),
            "rank": params.finetune.lora_rank if variant.adapter else None,
        }
        found.kept.append(checkpoints(params, label, run, []))
        with _to_train(params, teacher, label, adapter=variant.adapter) as weights:
            curve, usage = _train(
                params, teacher, schedule, weights, rollout, training_calls, label, found.kept[-1]
            )
            for name in names:
                found.curves[name], found.taken[name] = curve, usage
                if is_main():
                    write_student(
                        params, teacher, asked, schedules[wanted[name].schedule],
                        paths.student(budget) / name, adapter=variant.adapter,
                    )  # fmt: skip
        distributed.wait()  # for what the main process writes
    found.curves = {name: found.curves[name] for name in wanted}
    return found


def _rollout(params: Params, teacher: PipelineTeacher) -> tuple[Rollout, int]:
    """The trajectories, and how many of their calls are to learn from; all texts are encoded, and
    the encoders freed."""
    training, validation = groups_of(params, teacher)
    groups = (*training, *validation)
    offset = seed_for(TRAJECTORIES, params.seed)
    calls = [partial(teacher.student_call, teacher.training, g, seed=offset) for g in groups]
    with as_parameters(batch_size="trajectories.batch_size"), pipeline_refusals(teacher.pipeline):
        encode_all(teacher.pipeline, calls)
    knots = read_json(paths.TRAJECTORIES / "card.json")["knots"]
    return Rollout(paths.TRAJECTORIES, groups, tuple(knots)), len(training)


@contextmanager
def _to_train(
    params: Params, teacher: PipelineTeacher, label: str, *, adapter: bool
) -> Iterator[TrainedWeights]:
    """What is trained of the pipeline, at its start; afterwards the pipeline is as it was."""
    pipeline = teacher.pipeline
    every = sum(p.numel() for n in denoisers(pipeline).values() for p in n.parameters())
    if adapter:
        weights = add_lora(pipeline, params.finetune.lora_rank, seed=params.seed)
    else:
        weights = all_weights(pipeline)
    count = sum(weight.numel() for weight in weights.weights)
    share = f"{100 * count / every:.2f} %"
    say(f"{label}: {count:,} parameters trained, {share} of the teacher's {every:,}")
    start = None if adapter else [w.detach().cpu().clone() for w in weights.weights]
    yield weights
    if start is None:
        remove_lora(pipeline)
    else:
        weights.restore(start)
        freeze(pipeline)


def _most(rollout: Rollout) -> int:
    """Samples in the largest call."""
    return max(map(len, rollout.groups))


# What it takes is what one training differs by from the next.
def _train(
    params: Params, teacher: PipelineTeacher, schedule: Schedule, weights: TrainedWeights,
    rollout: Rollout, training_calls: int, label: str, kept: Checkpoints,
) -> tuple[list[Row], Usage | None]:  # fmt: skip
    """Straighten the pipeline for a schedule, in place."""
    wanted, seed = params.finetune.training, seed_for(TRAJECTORIES, params.seed)
    groups = Groups(
        call=lambda k: teacher.student_call(teacher.training, rollout.groups[k], seed=seed),
        states=lambda k: rollout.states(k, schedule.indices).to(teacher.device),
        training=range(training_calls),
        validation=range(training_calls, len(rollout.groups)),
    )
    # A batch of what trains there is one of calls; of single samples where no more are taken.
    calls = wanted.batch_size // min(params.trajectories.batch_size, _most(rollout))
    with (
        training_progress(label, wanted.iterations) as advance,
        measured(teacher.device, wanted.iterations * wanted.batch_size) as usage,
        as_parameters(batch_size="trajectories.batch_size"),
        pipeline_refusals(teacher.pipeline),
    ):
        trained = train_student(
            teacher.pipeline, schedule, weights, groups,
            wanted.model_copy(update={"batch_size": calls}),
            seed=params.seed, on_step=advance, checkpoints=kept,
        )  # fmt: skip
    return list(trained.curve), None if trained.start else usage
