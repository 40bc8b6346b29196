"""``boss check``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flows.cli.options import PRESET
from flows.config import PARAMS, Params, load_params

if TYPE_CHECKING:
    from flows.stages.check import Found


def check(
    presets: list[str] = PRESET,
    overrides: list[str] = typer.Option(
        [],
        "--set",
        metavar="NAME=VALUE",
        help="A parameter to change, as for `boss run`; params.yaml stays as it is.",
    ),
) -> None:
    """Check params.yaml and the inputs that it names, and say what was looked at; with --preset or
    --set what `boss run` would run with the same."""
    from flows.stages.check import check as check_inputs

    if presets or overrides:
        from flows.orchestration.request import changed_by, check_overrides
        from flows.workspace.presets import preset_overrides

        by = changed_by(presets, overrides)
        changes = [*preset_overrides(Path(), presets), *overrides]
        params, found = check_overrides(Path(), changes, by)
        checked = f"{PARAMS} with {by}"
    else:
        params = load_params()
        found, checked = check_inputs(params), str(PARAMS)
    for line in _looked_at(params, found, checked):
        print(line)


def _looked_at(params: Params, found: "Found | None", checked: str) -> Iterator[str]:
    """What the check has read, a line for each subject. checked: where the parameters stand."""
    budgets = ", ".join(map(str, sorted(params.budgets)))
    methods = ", ".join(params.finetune.methods) or "none"
    yield f"{checked}: every name, type and range; budgets {budgets}; students: {methods}"
    yield f"images: {_images(params, found)}"
    judged = [params.features.extractor, *params.evaluate.judges]
    yield f"what measures: {', '.join(judged)}"
    yield f"teacher: {_teacher(params)}"
    on = "a GPU where there is one" if params.device == "auto" else params.device
    processes = params.compute.processes
    yield f"device: {on}" + (f", {processes} processes in training" if processes > 1 else "")
    yield (
        "all right; not to be known before the run: whether a training diverges, and whether memory"
        " and disk suffice"
    )


def _images(params: Params, found: "Found | None") -> str:
    from flows.stages.check import LOOKED_AT, split

    if found is None:
        return "none (data.source: none)"
    channels, height, width = found.shape
    colour = {1: "grey", 3: "in colour"}.get(channels, f"of {channels} channels")
    kinds = "no labels" if found.kinds is None else f"{found.kinds} classes"
    training, test = split(params, found)
    source = params.data.source
    where = "" if source == "digits" else f" in {params.data.path}"
    opened = f"; the first {LOOKED_AT:,} opened" if found.count > LOOKED_AT else ""
    return (
        f"{source}{where}: {found.count:,} of {width}x{height}, {colour}, {kinds};"
        f" {training:,} for training, {test:,} for testing{opened}"
    )


def _teacher(params: Params) -> str:
    teacher = params.teacher
    if teacher.source == "train":
        kind = "a U-Net" if teacher.config is None else teacher.config
        return f"{kind}, trained here for {teacher.training.iterations:,} steps"
    if teacher.source == "checkpoint":
        return f"{teacher.path}, read"
    where = teacher.pipeline.hub or teacher.path
    return f"{where}: its files and the arguments of its call; the teacher's stage loads it"
