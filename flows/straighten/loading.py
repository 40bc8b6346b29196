"""The page beside a student: how it is loaded and called."""

from collections.abc import Mapping
from pathlib import Path

from boss_core.ode.schedule import Schedule
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
    call = {
        name: value
        for name, value in {**teacher.training.shared, **teacher.without}.items()
        if value is not None and isinstance(value, bool | int | float | str)
    }
    arguments = "".join(f"    {name}={value!r},\n" for name, value in call.items())
    baked = {
        name: value for name, value in teacher.training.shared.items() if name in teacher.without
    }
    of = f" ({', '.join(f'{k}={v}' for k, v in baked.items())})" if baked else ""
    loads = _loads(where, adapter=asked.training.rank is not None)
    adapters = "".join(f"pipeline.load_lora_weights({path!r})\n" for path in asked.teacher.lora)
    if adapters:
        adapters = "# The adapters that the teacher had.\n" + adapters
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

pipeline = {kind}.from_pretrained({asked.teacher.source!r}, torch_dtype=torch.{asked.teacher.dtype})
{adapters}{loads}pipeline.scheduler = FixedFlowScheduler.from_pretrained("scheduler")
images = pipeline(
    "a prompt",
    num_inference_steps={schedule.steps},
{arguments})
```

`card.json` has what it was trained on and how, and how near it came; `report.html` shows it;
`schedule.json` has the steps.
"""


def _loads(files: Mapping[str, Path], *, adapter: bool) -> str:
    """The lines that load the weights."""
    if not adapter:
        return "".join(
            f"pipeline.{name} = type(pipeline.{name}).from_pretrained(\n"
            f"    {str(path)!r}, torch_dtype=pipeline.dtype\n)\n"
            for name, path in files.items()
        )
    lines = []
    for name, path in files.items():
        folder = str(path.parent)
        if folder == ".":
            lines.append('pipeline.load_lora_weights(".")\n')
        elif name == "transformer_2":
            lines.append(f"pipeline.load_lora_weights({folder!r}, load_into_transformer_2=True)\n")
    return "".join(dict.fromkeys(lines))
