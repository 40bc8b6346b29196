"""``boss export``: a schedule for the sampler of another tool."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from boss_core import exports
from boss_core.errors import InputError
from boss_core.schedules import Schedule

WRITERS: dict[str, Callable[[Schedule], str]] = {
    "diffusers": exports.to_diffusers,
    "diffusers-fixed": exports.to_diffusers_fixed,
    "comfyui": exports.to_comfyui,
    "flow_matching": exports.to_flow_matching,
    "json": exports.to_json,
}


def export_schedule(path: Path, to: str) -> str:
    """The text for one of the targets."""
    if to not in WRITERS:
        raise InputError(f"--to: {to!r}; {', '.join(WRITERS)} known")
    return WRITERS[to](read_schedule(path))


def export_notes(path: Path, to: str) -> Iterator[str]:
    """What the text of a target cannot say."""
    schedule = read_schedule(path)
    if to == "comfyui":
        yield f"ComfyUI: for {exports.comfyui_sampler(schedule)}"
    if schedule.timesteps[0] > 0:
        level = schedule.sigmas[0]
        yield (
            f"image to image: begins at noise level {level:g}, from {1 - level:g} image +"
            f" {level:g} noise; in diffusers with strength=1.0"
        )


def read_schedule(path: Path) -> Schedule:
    """A schedule from its JSON file, or from the card of a student, adapter or not."""
    if path.is_dir():
        # They import torch, which a JSON file does not need.
        from boss_core.adapters import read_adapter_card
        from boss_core.checkpoints import ADAPTER, read_card

        read = read_adapter_card if (path / ADAPTER).is_file() else read_card
        schedule = read(path).schedule
        if schedule is None:
            raise InputError(f"{path}: a network without steps of its own; a student needed")
        return schedule
    if not path.is_file():
        raise InputError(f"{path}: no such file; a schedule as `boss schedule` writes it needed")
    return Schedule.from_json(path.read_bytes(), path)


def scheduler_lines(path: Path, folder: Path, mu: float | None) -> Iterator[str]:
    """What a diffusers scheduler, given by its configuration, would do to the schedule's steps."""
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise InputError(
            "--scheduler: diffusers is not installed; pip install 'boss-flow[diffusers]' needed"
        ) from error
    file = folder / "scheduler_config.json" if folder.is_dir() else folder
    try:
        config = json.loads(file.read_text())
        made = getattr(diffusers, config["_class_name"]).from_config(config)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{file}: not the configuration of a scheduler ({error})") from error
    found = exports.check_scheduler(made, read_schedule(path), mu=mu)
    if found.unchanged:
        yield f"{file}: takes these steps as they are"
        return
    yield f"{file}: changes these steps:"
    yield from (f"  {reason}" for reason in found.reasons)
    if found.sigmas_to_pass is None:
        yield "  no sigmas come out as these; use the scheduler of the snippet instead"
    else:
        passed = ", ".join(f"{sigma!r}" for sigma in found.sigmas_to_pass)
        yield f"  to keep it, pass sigmas=[{passed}]"
