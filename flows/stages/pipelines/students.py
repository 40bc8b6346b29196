"""A student of a diffusers pipeline as a folder: weights that diffusers loads, the scheduler of its
steps, and a card."""

import importlib.metadata
import os
from dataclasses import asdict, replace
from pathlib import Path

from boss_core.io.files import replacing_folder, sha256
from boss_core.ode.schedule import Schedule
from flows.config import Params
from flows.records.json_files import write_json
from flows.records.teachers import STUDENT_CARD
from flows.straighten import students
from flows.straighten.loading import how_to_load
from flows.straighten.request import PipelineRequest
from flows.straighten.teacher import PipelineTeacher

SCHEDULE, README = "schedule.json", "README.md"
LIBRARIES = ("torch", "diffusers", "peft", "transformers", "safetensors")


def write_student(
    params: Params,
    teacher: PipelineTeacher,
    asked: PipelineRequest,
    schedule: Schedule,
    folder: Path,
    *,
    adapter: bool,
) -> None:
    """The student that the pipeline is now."""
    rank = params.finetune.lora_rank if adapter else None
    asked = replace(asked, training=replace(asked.training, rank=rank))
    # Of the search it has the teacher's evaluations.
    own = float(schedule.steps * teacher.student_nfe)
    schedule = schedule.model_copy(update={"evaluations": own})
    with replacing_folder(folder) as part:
        files = students.write_weights(teacher.pipeline, part, adapter=adapter)
        students.write_scheduler(teacher.pipeline, schedule, part / "scheduler")
        (part / SCHEDULE).write_text(schedule.to_json() + "\n")
        text = how_to_load(teacher, _seen_from(folder, asked), schedule, files, part)
        (part / README).write_text(text)
        content = {
            "pipeline": type(teacher.pipeline).__name__,
            "teacher": asdict(asked.teacher)
            | {"prompts": str(asked.teacher.prompts), "revision": teacher.revision},
            "teacher_hash": teacher.hash,
            "conditions": teacher.conditions,
            "call_the_student_with": dict(teacher.without),
            "schedule": schedule.model_dump(mode="json"),
            "training": params.finetune.training.model_dump() | {"seed": params.seed, "rank": rank},
            "files": {
                str(path.relative_to(part)): sha256(path)
                for path in sorted(part.rglob("*"))
                if path.is_file()
            },
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }
        write_json(part / STUDENT_CARD, content)


def _seen_from(folder: Path, asked: PipelineRequest) -> PipelineRequest:
    """With the paths in the project as they are from a folder in it."""
    of = asked.teacher

    def there(path: str) -> str:
        here = Path(path)
        inside = here.exists() and not here.is_absolute()
        return os.path.relpath(path, folder) if inside else path

    lora = tuple(map(there, of.lora))
    return replace(asked, teacher=replace(of, source=there(of.source), lora=lora))
