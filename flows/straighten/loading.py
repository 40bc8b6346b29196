"""The page beside a student: how it is loaded and called."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from boss_core.ode.schedule import Schedule
from flows.search.images import image_files
from flows.search.pipeline_loading import dtype_argument
from flows.straighten.request import PipelineRequest
from flows.straighten.teacher import PipelineTeacher


def how_to_load(
    teacher: PipelineTeacher,
    asked: PipelineRequest,
    schedule: Schedule,
    files: Mapping[str, Path],
    folder: Path,
) -> str:
    """Markdown with code that diffusers alone runs, and what was baked into the student."""
    kind = type(teacher.pipeline).__name__
    where = {name: path.relative_to(folder) for name, path in files.items()}
    given = {**teacher.training.shared, **teacher.without}
    pictures = image_files(given)  # each user has their own
    call = {
        name: value
        for name, value in given.items()
        if name not in pictures and isinstance(value, bool | int | float | str)
    }
    arguments = "".join(f"    {name}={value!r},\n" for name, value in call.items())
    baked = {
        name: value for name, value in teacher.training.shared.items() if name in teacher.without
    }
    of = f" ({', '.join(f'{k}={v}' for k, v in baked.items())})" if baked else ""
    own = asked.training.rank is not None
    loads = _loads(where, named=bool(asked.teacher.lora)) if own else _loads_all(where)
    adapters = _adapters([seen_from(folder, path) for path in asked.teacher.lora])
    together = _together(len(asked.teacher.lora), own=own)
    source = repr(seen_from(folder, asked.teacher.source))
    if teacher.revision is not None:
        source = f"{asked.teacher.source.partition('@')[0]!r}, revision={teacher.revision!r}"
    return f"""# {kind} in {schedule.steps} steps

Straightened from `{asked.teacher.source}`, with its guidance{of} baked in: {schedule.steps} steps,
{schedule.steps * teacher.student_nfe:g} network evaluations an image. Run in this folder, with
diffusers and peft:

```python
import torch
from diffusers import {kind}

import sys

sys.path.insert(0, "scheduler")
from fixed_flow_scheduler import FixedFlowScheduler

pipeline = {kind}.from_pretrained({source}, {dtype_argument()}=torch.{asked.teacher.dtype})
{adapters}{loads}{together}pipeline.scheduler = FixedFlowScheduler.from_pretrained("scheduler")
result = pipeline(
    "a prompt",
    num_inference_steps={schedule.steps},
{arguments})  # result.images; of a film .frames, of sound .audios
```

`card.json` has what it was trained on and how, and how near it came; `report.html` shows it;
`schedule.json` has the steps.
"""


def seen_from(folder: Path, source: str) -> str:
    """A local path as it is named in a folder beside the final one of a student; a name on the hub
    as it is."""
    place = Path(source)
    if place.is_absolute() or not place.exists():
        return source
    return os.path.relpath(place.resolve(), folder.resolve())


def _adapters(paths: Sequence[str]) -> str:
    """The lines that load the adapters which the teacher had."""
    lines = []
    for number, path in enumerate(paths):
        where, file = repr(path), ""
        if path.endswith(".safetensors"):
            where, file = repr(str(Path(path).parent)), f", weight_name={Path(path).name!r}"
        lines.append(
            f'pipeline.load_lora_weights({where}{file}, adapter_name="teacher_{number}")\n'
        )
    return ("# The adapters that the teacher had.\n" if lines else "") + "".join(lines)


def _together(count: int, *, own: bool) -> str:
    """The line that turns several adapters on, where there are any beside the student's."""
    names = [f"teacher_{k}" for k in range(count)] + ["student"] * own
    return f"pipeline.set_adapters({names})\n" if count else ""


def _loads_all(files: Mapping[str, Path]) -> str:
    """The lines that load networks whose weights were all trained."""
    return "".join(
        f"pipeline.{name} = type(pipeline.{name}).from_pretrained(\n"
        f"    {str(path)!r}, {dtype_argument()}=pipeline.dtype\n).to(pipeline.device)\n"
        for name, path in files.items()
    )


def _loads(files: Mapping[str, Path], *, named: bool) -> str:
    """The lines that load the student's adapter. named: beside others."""
    name = ', adapter_name="student"' if named else ""
    lines = []
    for network, path in files.items():
        folder = str(path.parent)
        second = ", load_into_transformer_2=True" if network == "transformer_2" else ""
        if folder == "." or second:
            lines.append(f"pipeline.load_lora_weights({folder!r}{name}{second})\n")
    return "".join(dict.fromkeys(lines))
