"""One student of a pipeline: trained for a budget, written as diffusers reads it, and its card."""

import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boss_core import __version__
from boss_core.interop.fixed_flow_scheduler import FixedFlowScheduler
from boss_core.interop.pipeline_lora import TrainedWeights, denoisers, save_lora
from boss_core.interop.pipeline_students import Groups, train_student
from boss_core.io.files import sha256
from boss_core.ode.noise import TRAJECTORIES, seed_for
from boss_core.ode.schedule import Schedule
from boss_core.training.loop import Row
from boss_core.training.resume import Checkpoints
from flows.measure.energy import Usage, measured
from flows.progress import progress
from flows.search.refusals import pipeline_refusals
from flows.straighten.processes import is_main
from flows.straighten.request import PipelineRequest
from flows.straighten.rollouts import Rollout
from flows.straighten.teacher import PipelineTeacher

CHECKPOINT_EVERY = 50  # steps
VALIDATION = 0.05  # the share of the calls that the loss is validated on


@dataclass(frozen=True)
class Student:
    """What a training gave: the pipeline has the weights. usage: None where it went on."""

    schedule: Schedule
    weights: TrainedWeights
    curve: Sequence[Row]
    usage: Usage | None


def train(
    teacher: PipelineTeacher,
    asked: PipelineRequest,
    schedule: Schedule,
    weights: TrainedWeights,
    rollout: Rollout,
    checkpoints: Checkpoints,
) -> Student:
    """Train the weights for the steps of a schedule on the teacher's states."""
    settings, seed = asked.training.settings(), seed_for(TRAJECTORIES, asked.seed)
    held = max(1, round(VALIDATION * len(rollout.groups))) if len(rollout.groups) > 3 else 0
    training = range(len(rollout.groups) - held)
    groups = Groups(
        call=lambda k: teacher.student_call(teacher.training, rollout.groups[k], seed=seed),
        states=lambda k: rollout.states(k, schedule.indices).to(teacher.device),
        training=training,
        validation=range(training.stop, len(rollout.groups)),
    )
    label = f"straighten@{schedule.steps}"
    images = settings.iterations * asked.training.batch_size * asked.training.accumulate
    with (
        _progress(label, settings.iterations) as advance,
        measured(teacher.device, images) as usage,
        pipeline_refusals(teacher.pipeline),
    ):
        trained = train_student(
            teacher.pipeline, schedule, weights, groups, settings,
            seed=asked.seed, on_step=advance, checkpoints=checkpoints,
        )  # fmt: skip
    return Student(schedule, trained.network, trained.curve, None if trained.start else usage)


@contextmanager
def _progress(label: str, steps: int):  # type: ignore[no-untyped-def]
    if not is_main():
        yield None
        return
    with progress(label, steps, "steps") as advance:
        yield advance


def write_weights(pipeline: Any, folder: Path, *, adapter: bool) -> dict[str, Path]:
    """The weights that were trained, as the pipeline's own functions write them: by network."""
    if adapter:
        files = save_lora(pipeline, folder)
    else:
        files = {name: folder / name for name in denoisers(pipeline)}
        for name, network in denoisers(pipeline).items():
            network.save_pretrained(files[name])
    for path in folder.rglob("*.safetensors"):  # written for their owner alone
        path.chmod(0o666 & ~_umask())
    return files


def _umask() -> int:
    """What new files of this process may not be."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_scheduler(pipeline: Any, schedule: Schedule, folder: Path) -> None:
    """``scheduler/``: the steps in a configuration, and beside it the file of their class, so that
    diffusers loads both without this library."""
    scheduler = FixedFlowScheduler.like(
        pipeline.scheduler, schedule.sigmas, schedule.solver, schedule.weights
    )
    scheduler.save_pretrained(folder)
    source = Path(str(importlib.import_module(FixedFlowScheduler.__module__).__file__))
    (folder / source.name).write_bytes(source.read_bytes())


def card(
    teacher: PipelineTeacher,
    asked: PipelineRequest,
    student: Student,
    measured_distances: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Everything that the student came from, and what it came to."""
    libraries = ("torch", "diffusers", "peft", "transformers", "safetensors")
    of = asdict(asked.teacher) | {"prompts": str(asked.teacher.prompts)}
    of |= {"revision": teacher.revision}
    return {
        "teacher": of | {"hash": teacher.hash, "kind": type(teacher.pipeline).__name__},
        "prompts": {
            "sha256": None if asked.teacher.prompts is None else sha256(asked.teacher.prompts),
            "training": len(teacher.training.rows),
            "held_out": len(teacher.held_out.rows),
            "conditions": teacher.conditions,
        },
        "baked_in": {
            "arguments": {k: v for k, v in teacher.training.shared.items() if _is_plain(v)},
            "call_the_student_with": dict(teacher.without),
        },
        "schedule": student.schedule.model_dump(mode="json"),
        "training": asdict(asked.training)
        | {"seed": asked.seed, "settings": asked.training.settings().model_dump()},
        "results": dict(measured_distances),
        "curve": list(student.curve),
        "took": None if student.usage is None else asdict(student.usage),
        "files": {
            str(path.relative_to(folder)): sha256(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
        "versions": {name: _version(name) for name in libraries} | {"boss-flow": __version__},
    }


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
