"""Students of a small text-to-image pipeline, and the guided pipeline itself in few steps.

    python -m studies.text_to_image.students FOLDER --teacher TEACHER/pipeline --kinds guided
    python -m studies.text_to_image.students FOLDER --teacher TEACHER/pipeline --kinds lora full

The teacher takes 28 guided steps, two network evaluations each. ``guided`` searches the best steps
on that grid and samples the teacher in few of them, of every kind; ``lora`` and ``full`` straighten
a student for every budget, on the best steps, and sample it without guidance, one evaluation a
step. All sets of samples start from the same noise and prompts, and go to FOLDER/samples; what is
there already is not made again.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import estimate_pipeline_cost, pipeline_hash
from boss_core.interop.guidance import without_guidance
from boss_core.interop.pipeline_encodings import remember_encodings
from boss_core.interop.pipeline_lora import (
    TrainedWeights,
    add_lora,
    all_weights,
    compile_blocks,
    freeze,
    remove_lora,
    save_lora,
)
from boss_core.interop.pipeline_students import Groups, train_student
from boss_core.interop.teacher_forcing import KnotStates, straighten_call, teacher_states
from boss_core.io.files import write_bytes
from boss_core.ode.noise import COSTS, TRAJECTORIES
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import shifted, uniform, union
from boss_core.search.settings import SearchSettings
from boss_core.search.steps import from_costs
from boss_core.training.settings import TrainingSettings
from studies.text_to_image.pipeline import load_pipeline
from studies.text_to_image.samples import (
    TEACHER,
    Calls,
    Made,
    draw,
    evaluation_calls,
    is_there,
    parts,
    write_set,
)

KINDS = ("guided", "lora", "full")
STEPS = ("uniform", "shifted", "bellman", "ab2")
SHIFT = 3.0
STUDENTS = "students"
WARM_UP, TIMED = 2, 5  # steps before a training, to choose kernels and to learn how long they take


@dataclass(frozen=True)
class Study:
    """The teacher on its device, and what is asked for. key: what all sets have in common.
    without: the arguments of a call without guidance."""

    chosen: argparse.Namespace
    pipeline: Any
    device: torch.device
    without: Mapping[str, Any]
    key: str

    def calls(self, purpose: int) -> Calls:
        return Calls(self.chosen.guidance, self.chosen.seed, purpose, self.device)


def main(arguments: list[str] | None = None) -> None:
    """Make what is missing of the kinds asked for."""
    chosen = _parsed(arguments)
    try:
        run(chosen)
    except InputError as error:
        sys.exit(f"error: {error}")


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path)
    add("--teacher", type=Path, required=True, help="the folder of its pipeline")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    add("--budgets", type=int, nargs="+", default=[1, 2, 4, 8], help="of students")
    add("--student-steps", choices=["bellman", "ab2"], default="bellman")
    add("--guided-steps", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8, 12, 16])
    add("--grid", type=int, default=28, help="steps of the teacher")
    add("--guidance", type=float, default=3.0)
    add("--samples", type=int, default=4096, help="in each set")
    add("--search-samples", type=int, default=256)
    add("--trajectories", type=int, default=16384, help="to learn from")
    add("--batch-size", type=int, default=128, help="of a training step")
    add("--draw-batch", type=int, default=512, help="of samples and trajectories")
    add("--seconds", type=float, default=45.0, help="of each student's training, as measured")
    add("--iterations", type=int, help="of each student's training, in place of --seconds")
    add("--rank", type=int, default=64)
    add("--lora-rate", type=float, default=1e-3, help="learning rate of LoRA weights")
    add("--full-rate", type=float, default=2e-4, help="learning rate of all weights")
    add("--ema", type=float, default=0.99)
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--no-compile", action="store_true")
    return parser.parse_args(arguments)


def run(chosen: argparse.Namespace) -> None:
    """Search, sample and straighten; InputError for settings that do not hold."""
    torch.set_float32_matmul_precision("high")
    study = _load(chosen)
    schedules = _schedules(study)
    if "guided" in chosen.kinds:
        _guided(study, schedules)
    wanted = [(kind, k) for kind in chosen.kinds if kind != "guided" for k in chosen.budgets]
    left = [
        (kind, k) for kind, k in wanted
        if not is_there(chosen.folder, _name(chosen, kind, k), _student_key(study, kind))
    ]  # fmt: skip
    if not left:
        return
    rollout = _roll_out(study, union([schedules[chosen.student_steps, k].indices for _, k in left]))
    if not chosen.no_compile:
        compile_blocks(study.pipeline)
    for kind, budget in left:
        _student(study, kind, schedules[chosen.student_steps, budget], rollout)


def _load(chosen: argparse.Namespace) -> Study:
    if not (chosen.teacher / "model_index.json").is_file():
        raise InputError(f"--teacher: {chosen.teacher}: no pipeline's folder; one needed")
    for budget in (*chosen.budgets, *chosen.guided_steps):
        if not 1 <= budget <= chosen.grid:
            raise InputError(f"--budgets: {budget}; 1..{chosen.grid}, the steps of --grid, needed")
    device = torch.device(chosen.device)
    pipeline = load_pipeline(chosen.teacher, device, getattr(torch, chosen.dtype))
    freeze(pipeline)
    weights = pipeline_hash(pipeline)
    remember_encodings(pipeline)
    sample = evaluation_calls(chosen.guidance, chosen.seed, device).call(range(2))
    changes, evaluations = without_guidance(pipeline, sample, uniform(2))
    print(
        f"teacher {weights[:12]}: a student's call has {changes}, {evaluations:g} evaluation(s)"
        " a step",
        flush=True,
    )
    key = f"{weights[:12]} guidance {chosen.guidance:g} grid {chosen.grid} seed {chosen.seed}"
    return Study(chosen, pipeline, device, changes, f"{key} samples {chosen.samples}")


def _schedules(study: Study) -> dict[tuple[str, int], Schedule]:
    """Of every kind for every number of steps; the searched ones are kept in the folder."""
    chosen = study.chosen
    budgets = sorted({*chosen.budgets, *chosen.guided_steps})
    found: dict[tuple[str, int], Schedule] = {}
    for k in budgets:
        found["uniform", k] = Schedule(timesteps=tuple(uniform(k)), objective="uniform")
        found["shifted", k] = Schedule(timesteps=tuple(shifted(k, SHIFT)), objective="shifted")
    path = chosen.folder / "schedules.json"
    key = f"{study.key} search {chosen.search_samples}"
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept and kept["key"] != key:
        raise InputError(f"{path}: of other settings ({kept['key']}); another folder needed")
    searched = kept.get("schedules", {})
    missing = [k for k in budgets if str(k) not in searched]
    if missing:
        began = _now(study.device)
        calls = study.calls(COSTS)
        cost = estimate_pipeline_cost(
            study.pipeline, uniform(chosen.grid),
            (calls.call(p) for p in parts(chosen.search_samples, chosen.draw_batch)),
        )  # fmt: skip
        for solver in ("euler", "ab2"):
            for k, steps in from_costs(cost.matrix, missing, SearchSettings(solver=solver)):
                schedule = Schedule(
                    timesteps=tuple(float(cost.matrix.timesteps[i]) for i in steps.indices),
                    indices=steps.indices, solver=solver, objective="l2_squared",
                )  # fmt: skip
                searched.setdefault(str(k), {})[solver] = json.loads(schedule.to_json())
        content = {"key": key, "seconds": _now(study.device) - began, "schedules": searched}
        write_bytes(path, json.dumps(content, indent=1).encode() + b"\n")
        print(f"search: {content['seconds']:.1f} s", flush=True)
    for k in budgets:
        found["bellman", k] = Schedule.from_json(json.dumps(searched[str(k)]["euler"]), path)
        found["ab2", k] = Schedule.from_json(json.dumps(searched[str(k)]["ab2"]), path)
    return found


def _guided(study: Study, schedules: Mapping[tuple[str, int], Schedule]) -> None:
    """The teacher's samples, and those of it in few steps."""
    fine = Schedule(timesteps=tuple(uniform(study.chosen.grid)), objective="uniform")
    wanted = {TEACHER: ("uniform", fine)}
    for k in study.chosen.guided_steps:
        for steps in STEPS:
            wanted[f"guided-{steps}-{k}"] = steps, schedules[steps, k]
    for name, (steps, schedule) in wanted.items():
        if not is_there(study.chosen.folder, name, study.key):
            _sample(study, name, "guided", steps, schedule, study.key)


def _sample(study: Study, name: str, kind: str, steps: str, schedule: Schedule, key: str) -> None:
    """One set: guided, or without guidance from a student that the pipeline now is."""
    chosen = study.chosen
    began = _now(study.device)
    changes = {} if kind == "guided" else dict(study.without)
    with _not_compiled():
        latents, evaluations = draw(
            study.pipeline, schedule, evaluation_calls(chosen.guidance, chosen.seed, study.device),
            changes, chosen.samples, chosen.draw_batch,
        )  # fmt: skip
    made = Made(
        name, kind, steps, schedule.solver, schedule.steps, evaluations,
        tuple(schedule.timesteps), key,
    )  # fmt: skip
    write_set(chosen.folder, made, latents)
    print(f"{name}: {evaluations:g} evaluations, {_now(study.device) - began:.1f} s", flush=True)


@dataclass(frozen=True)
class Rollout:
    """What students learn from, all of it on the device: the call without guidance of each group
    of samples, a training step's, and the teacher's states at some points of the grid."""

    knots: tuple[int, ...]
    calls: list[dict[str, Any]]
    states: list[KnotStates]


def _roll_out(study: Study, knots: tuple[int, ...]) -> Rollout:
    chosen = study.chosen
    began = _now(study.device)
    of_samples = study.calls(TRAJECTORIES)
    size = chosen.batch_size
    calls, states = [], []
    for part in parts(chosen.trajectories, max(1, chosen.draw_batch // size) * size):
        call = of_samples.call(part)
        found, _ = teacher_states(study.pipeline, uniform(chosen.grid), knots, call)
        for start in range(0, len(part) - size + 1, size):
            rows = slice(start, start + size)
            own = {"prompt": call["prompt"][rows], "latents": call["latents"][rows]}
            calls.append(call | own | dict(study.without))
            states.append(KnotStates(tuple(of_track[:, rows] for of_track in found.states)))
    if not calls:
        raise InputError(f"--trajectories: {chosen.trajectories}; at least --batch-size needed")
    print(f"rollout: {len(calls)} groups, {_now(study.device) - began:.1f} s", flush=True)
    return Rollout(knots, calls, states)


def _student(study: Study, kind: str, schedule: Schedule, rollout: Rollout) -> None:
    """Straighten one, sample it, and put the pipeline back as it was."""
    chosen = study.chosen
    name = _name(chosen, kind, schedule.steps)
    pipeline = study.pipeline
    if kind == "lora":
        weights, rate, start = add_lora(pipeline, chosen.rank, seed=chosen.seed), "lora_rate", None
    else:
        weights, rate = all_weights(pipeline), "full_rate"
        start = [w.detach().clone() for w in weights.weights]
    places = [rollout.knots.index(i) for i in schedule.indices]
    groups = Groups(
        call=lambda k: rollout.calls[k],
        states=lambda k: rollout.states[k].at(places),
        training=range(len(rollout.calls)),
    )
    began = _now(study.device)
    each = _seconds_each(study, weights, groups, schedule)
    warm = _now(study.device) - began
    iterations = chosen.iterations or max(20, round(chosen.seconds / each))
    settings = TrainingSettings(
        iterations=iterations,
        batch_size=1,  # groups
        learning_rate=getattr(chosen, rate),
        learning_rate_schedule="cosine",
        warmup=min(100, iterations // 20),
        gradient_clip=1.0,
        ema_decay=chosen.ema,
    )
    began = _now(study.device)
    trained = train_student(pipeline, schedule, weights, groups, settings, seed=chosen.seed)
    seconds = _now(study.device) - began
    count = sum(w.numel() for w in weights.weights)
    losses = [row["loss"] for row in trained.curve]
    print(
        f"{name}: {iterations} steps of {chosen.batch_size}, {count:,} weights, {seconds:.1f} s"
        f" (kernels before: {warm:.1f} s), loss {losses[0]:.5f} to {losses[-1]:.5f}",
        flush=True,
    )
    _write_student(study, kind, name)
    record = {
        "kind": kind, "steps": chosen.student_steps, "budget": schedule.steps,
        "weights": count, "iterations": iterations,
        "batch_size": chosen.batch_size, "learning_rate": settings.learning_rate,
        "rank": chosen.rank if kind == "lora" else None, "seconds": seconds,
        "trajectories": len(rollout.calls) * chosen.batch_size, "curve": list(trained.curve),
        "peak_bytes": _peak(study.device), "device": _device_name(study.device),
    }  # fmt: skip
    path = chosen.folder / STUDENTS / f"{name}.json"
    write_bytes(path, json.dumps(record, indent=1).encode() + b"\n")
    _sample(study, name, kind, chosen.student_steps, schedule, _student_key(study, kind))
    if start is None:
        remove_lora(pipeline)
    else:
        weights.restore(start)
    freeze(pipeline)


def _seconds_each(
    study: Study, weights: TrainedWeights, groups: Groups, schedule: Schedule
) -> float:
    """What a training step takes, once its kernels are chosen; no weight changes."""
    for number in range(WARM_UP + TIMED):
        if number == WARM_UP:
            began = _now(study.device)
        group = number % len(groups.training)
        weights.push()
        straighten_call(
            study.pipeline, schedule.timesteps, schedule.solver, groups.call(group),
            groups.states(group), lambda k: weights.collect(), check_start=number == 0,
        )  # fmt: skip
    each = (_now(study.device) - began) / TIMED
    for weight in weights.weights:
        weight.grad = None
    return each


def _write_student(study: Study, kind: str, name: str) -> None:
    """As diffusers reads it: a LoRA's file, or the network."""
    folder = study.chosen.folder / STUDENTS / name
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "lora":
        save_lora(study.pipeline, folder)
    else:
        study.pipeline.transformer.save_pretrained(folder)


def _name(chosen: argparse.Namespace, kind: str, budget: int) -> str:
    return f"{kind}-{chosen.student_steps}-{budget}"


def _student_key(study: Study, kind: str) -> str:
    """What a student's samples depend on; not how long it was trained, which its record says."""
    of = f"rank {study.chosen.rank}" if kind == "lora" else "all weights"
    return f"{study.key} {of} trajectories {study.chosen.trajectories}"


@contextmanager
def _not_compiled() -> Iterator[None]:
    """Sampling takes batches of other sizes, and too few evaluations to pay for their kernels."""
    torch.compiler.set_stance("force_eager")
    try:
        yield
    finally:
        torch.compiler.set_stance("default")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    main()
