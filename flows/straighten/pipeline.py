"""``boss straighten --pipeline``: students of a diffusers pipeline, one after the other.

The folder of a run holds a folder for each budget, written whole when its student is finished;
``search/``, the costs and the schedules; ``rollout/``, the teacher's states; and ``training/``,
checkpoints, while there are any. A run that was stopped goes on with what it finds there.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from boss_core.errors import InputError
from boss_core.io.files import replacing_folder
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import Times, uniform, union
from boss_core.training import distributed
from boss_core.training.resume import Checkpoints
from flows.progress import progress
from flows.records.json_files import Json, write_json
from flows.search.images import image_files
from flows.search.pipeline_call import SampleCalls
from flows.straighten import held_out, students
from flows.straighten.held_out import Sampled, sample_held_out
from flows.straighten.loading import how_to_load
from flows.straighten.page import write_report
from flows.straighten.processes import is_main, say
from flows.straighten.request import PipelineRequest, Training, check_straightening
from flows.straighten.rollouts import Rollout, roll_out
from flows.straighten.steps import guided_steps, schedules_of
from flows.straighten.teacher import PipelineTeacher, encode_all, load_teacher
from flows.straighten.trial import Trial, trained_weights, try_out, untrained

CARD, SCHEDULE, REPORT, README = "card.json", "schedule.json", "report.html", "README.md"


def straighten_pipeline(asked: PipelineRequest) -> None:
    """Search the steps, roll out the teacher, train and write a student for each budget."""
    check_straightening(asked)
    teacher = load_teacher(asked)
    asked = replace(asked, training=as_called(asked.training, teacher.training))
    left = [k for k in asked.budgets if not _finished(asked, teacher, k)]
    if not left:
        return
    trial = try_out(teacher, asked)
    _say_plan(asked, teacher, trial, left)
    times = uniform(asked.grid)
    # Of all, the finished too: the rollout of a run that goes on stays what it was.
    schedules = schedules_of(teacher, asked, asked.budgets)
    groups = tuple(
        teacher.training.parts(range(asked.training.trajectories), asked.training.batch_size)
    )
    knots = union([schedules[k].indices for k in asked.budgets])
    rollout = Rollout(asked.out / "rollout", groups, tuple(knots))
    _encode(asked, teacher, groups)
    roll_out(teacher, rollout, times, asked.seed)
    fine = _fine(asked, teacher, times)
    for budget in left:
        _straighten(asked, teacher, schedules[budget], rollout, fine)
    taken = sum(path.stat().st_size for path in rollout.folder.iterdir())
    say(
        f"{rollout.folder}: {taken / 2**20:,.1f} MiB of the teacher's states, from which the same"
        " budgets are trained again (--replace); else it may be deleted"
    )


def as_called(training: Training, calls: SampleCalls) -> Training:
    """The same steps where each sample is a call, as for pipelines that take no batch: as many
    samples in a step, by more calls."""
    every = all(image_files(calls.arguments(i)) for i in range(len(calls.rows)))
    if calls.images == "single" or (calls.images == "alone" and every):
        of_step = training.batch_size * training.accumulate
        return replace(training, batch_size=1, accumulate=of_step)
    return training


def _straighten(
    asked: PipelineRequest,
    teacher: PipelineTeacher,
    schedule: Schedule,
    rollout: Rollout,
    fine: Sampled | None,
) -> None:
    """One student, from its start to its folder; the pipeline is then as it was before."""
    budget = schedule.steps
    main = is_main()
    others = _others(asked, teacher, schedule) if main else []
    # Of the search it has the teacher's evaluations.
    own_evaluations = float(budget * teacher.student_nfe)
    schedule = schedule.model_copy(update={"evaluations": own_evaluations})
    weights = trained_weights(teacher, asked)
    start = None
    if asked.training.rank is None:
        start = [w.detach().cpu().clone() for w in weights.weights]
    kept = Checkpoints(
        asked.out / "training" / str(budget),
        students.CHECKPOINT_EVERY,
        _run(asked, teacher) | {"schedule": schedule.model_dump(mode="json")},
    )
    student = students.train(teacher, asked, schedule, weights, rollout, kept)
    if main:
        assert fine is not None
        own = _sampled(asked, teacher, f"student, {budget} steps", schedule, guided=False)
        folder = asked.out / str(budget)
        found = [*others, own]
        results = {
            s.title: {
                "distance": s.distance(fine),
                "nfe": s.evaluations,
                "seconds": s.seconds,
            }
            for s in found
        } | {fine.title: {"distance": 0.0, "nfe": fine.evaluations, "seconds": fine.seconds}}
        with replacing_folder(folder) as part:
            files = students.write_weights(
                teacher.pipeline, part, adapter=asked.training.rank is not None
            )
            students.write_scheduler(teacher.pipeline, schedule, part / "scheduler")
            (part / SCHEDULE).write_text(schedule.to_json() + "\n")
            text = how_to_load(teacher, asked, schedule, files, part)
            (part / README).write_text(text)
            written = students.card(teacher, asked, student, results, part)
            write_json(part / CARD, written | {"request": _run(asked, teacher)})
            write_report(part / REPORT, teacher, asked, written, fine, others, own)
        kept.remove()
        with suppress(OSError):  # another budget's, where there is one
            kept.folder.parent.rmdir()
        _show(folder, budget, found, fine, own)
    distributed.wait()
    if start is not None:
        weights.restore(start)
    untrained(teacher, asked)


def _others(asked: PipelineRequest, teacher: PipelineTeacher, schedule: Schedule) -> list[Sampled]:
    """What a user would do without the student: guided steps, as many and for as many
    evaluations, and the schedule without guidance."""
    budget = schedule.steps
    kind = "guided" if teacher.without else "teacher"
    found = [_sampled(asked, teacher, f"{kind}, {budget} step{'s' * (budget > 1)}", schedule)]
    fewer = guided_steps(teacher, asked, schedule, found[0].evaluations)
    if fewer is not None:
        title = f"{kind}, {fewer.steps} step{'s' * (fewer.steps > 1)}"
        found.append(_sampled(asked, teacher, title, fewer))
    if teacher.without:
        title = f"without guidance, {budget} steps"
        found.append(_sampled(asked, teacher, title, schedule, guided=False))
    return found


def _sampled(
    asked: PipelineRequest,
    teacher: PipelineTeacher,
    title: str,
    schedule: Schedule | Times,
    *,
    guided: bool = True,
) -> Sampled:
    return sample_held_out(
        teacher, title, schedule, asked.training.held_out,
        batch_size=asked.training.batch_size, seed=asked.seed, guided=guided,
    )  # fmt: skip


def _fine(asked: PipelineRequest, teacher: PipelineTeacher, times: Times) -> Sampled | None:
    """The teacher's own held-out samples, which all others are compared with."""
    if not is_main():
        return None
    with progress("teacher's held-out samples", asked.training.held_out, "samples") as advance:
        return sample_held_out(
            teacher, f"teacher, {asked.grid} steps", times, asked.training.held_out,
            batch_size=asked.training.batch_size, seed=asked.seed, on_step=advance,
        )  # fmt: skip


def _encode(asked: PipelineRequest, teacher: PipelineTeacher, groups: Sequence[range]) -> None:
    """All that the pipeline is asked to encode from here on, so that its encoders may go."""
    count, batch_size, seed = asked.training.held_out, asked.training.batch_size, asked.seed
    calls: list[Callable[[], Mapping[str, Any]]] = []
    for part in groups:
        calls.append(partial(teacher.training.call, part, seed=seed))
        calls.append(partial(teacher.student_call, teacher.training, part, seed=seed))
    for part in held_out.held_out_parts(teacher, count, batch_size):
        for guided in (True, False):
            calls.append(partial(held_out.held_out_call, teacher, part, seed, guided=guided))
    encode_all(teacher.pipeline, calls)


def _run(asked: PipelineRequest, teacher: PipelineTeacher) -> Json:
    """What a student depends on beside its schedule."""
    training = asdict(asked.training)
    return {
        "teacher": teacher.hash,
        "conditions": teacher.conditions,
        "grid": asked.grid,
        "steps": asked.steps,
        "solver": asked.solver,
        "seed": asked.seed,
        "training": training,
    }


def _finished(asked: PipelineRequest, teacher: PipelineTeacher, budget: int) -> bool:
    """Whether the folder of a budget holds this very student; InputError where it holds another."""
    folder = asked.out / str(budget)
    if not folder.exists():
        return False
    try:
        there = json.loads((folder / CARD).read_text())["request"]
    except (OSError, ValueError, KeyError, TypeError):
        there = None
    wanted = json.loads(json.dumps(_run(asked, teacher)))
    if there == wanted:
        say(f"{folder}: finished already")
        return True
    if asked.replace:
        return False
    other = "no student of this command"
    if isinstance(there, dict):
        names = [name for name in wanted if there.get(name) != wanted[name]]
        other = f"a student of another run ({', '.join(names)} differ)"
    raise InputError(f"{folder}: holds {other}; another --out, or --replace, needed")


def _say_plan(
    asked: PipelineRequest, teacher: PipelineTeacher, trial: Trial, budgets: Sequence[int]
) -> None:
    """What is about to be done, by the count and by the clock, before it begins."""
    of = asked.training
    calls = -(-of.trajectories // of.batch_size)
    evaluations = of.trajectories * asked.grid * trial.nfe
    off = " and ".join(f"{k}={v}" for k, v in teacher.without.items()) or "the call as it is"
    say(
        f"plan: the teacher takes {trial.nfe:g} network evaluations a step, a student"
        f" {teacher.student_nfe:g} ({off})"
    )
    say(
        f"plan: rollout of {of.trajectories} trajectories of {asked.grid} steps:"
        f" {evaluations:,.0f} evaluations, about"
        f" {_duration(calls * asked.grid * trial.teacher_seconds)}; states take up to"
        f" {of.trajectories * (sum(budgets) + 1) * trial.elements * 4 / 2**30:,.2f} GiB on the disk"
    )
    for budget in budgets:
        steps = of.iterations * of.accumulate * budget
        say(
            f"plan: K = {budget}: {of.iterations} steps of {of.batch_size * of.accumulate} samples,"
            f" {trial.trained:,} weights: {steps * of.batch_size:,} evaluations with gradients,"
            f" about {_duration(steps * trial.student_seconds)}"
        )
    if trial.peak is not None:
        say(f"plan: one step held {trial.peak / 2**30:,.1f} GiB of the GPU's memory")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _show(folder: Path, budget: int, found: Sequence[Sampled], fine: Sampled, own: Sampled) -> None:
    """Print how near the samples come to the teacher's."""
    table = Table(
        title=f"K = {budget}: squared distance of latents to the teacher's,"
        f" {len(fine.latents)} samples of held-out prompts and noise"
    )
    table.add_column("samples")
    for title in ("evaluations", "seconds", "distance"):
        table.add_column(title, justify="right")
    for sampled in (fine, *found):
        table.add_row(
            sampled.title,
            f"{sampled.evaluations:g}",
            f"{sampled.seconds:.3g}",
            f"{sampled.distance(fine):.4g}",
        )
    Console(width=110).print(table)
    print(
        f"{folder}: {own.evaluations:g} network evaluations a sample; {README} says how to load it"
    )
