"""``boss export``: a schedule for the sampler of another tool."""

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from boss_core.errors import InputError
from boss_core.interop import export
from boss_core.ode.schedule import Schedule

PIPELINE, OF_STUDENT = "model_index.json", "schedule.json"
FLOW = "flow_prediction"
# Given sigmas, they still tell their network the times of steps of their own.
_OWN_TIMES = ("CogView4", "GlmImage")
# What JSON of the wrong kind raises, the last where it is nested without end.
_UNREADABLE = (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError)

WRITERS: dict[str, Callable[[Schedule], str]] = {
    "diffusers": export.to_diffusers,
    "diffusers-fixed": export.to_diffusers_fixed,
    "comfyui": export.to_comfyui,
    "comfyui-node": export.to_comfyui_node,
    "flow_matching": export.to_flow_matching,
    "json": export.to_json,
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
        yield f"ComfyUI: for {export.comfyui_sampler(schedule)}"
    if to == "comfyui-node":
        yield "ComfyUI: a file of its folder custom_nodes; restart it, and the node is there"
    if schedule.timesteps[0] > 0:
        level = schedule.sigmas[0]
        yield (
            f"image to image: begins at noise level {level:g}, from {1 - level:g} image +"
            f" {level:g} noise; in diffusers with strength=1.0"
        )


def read_schedule(path: Path) -> Schedule:
    """A schedule from its JSON file, from the card of a student, adapter or not, or one of all that
    a run of the pipeline has: ``results/schedules.json#4/chosen``."""
    file, mark, name = str(path).rpartition("#")
    if mark and not path.exists():
        return _one_of_many(Path(file), name)
    if path.is_dir() and (path / OF_STUDENT).is_file():  # of a pipeline
        path = path / OF_STUDENT
    if path.is_dir():
        # They import torch, which a JSON file does not need.
        from boss_core.checkpoints.folder import ADAPTER, CARD, read_card
        from boss_core.checkpoints.lora import read_adapter_card

        if not (path / CARD).is_file():
            there = sorted(path.glob("*.json"))
            example = f", as {there[0]}," if there else ""
            raise InputError(
                f"{path}: a folder without {CARD}; a student's, or the JSON of a schedule{example}"
                " needed"
            )
        read = read_adapter_card if (path / ADAPTER).is_file() else read_card
        schedule = read(path).schedule
        if schedule is None:
            raise InputError(f"{path}: a network without steps of its own; a student needed")
        return schedule
    if not path.is_file():
        raise InputError(f"{path}: no such file; a schedule as `boss schedule` writes it needed")
    content = path.read_bytes()
    if many := _named(content):
        raise InputError(f"{path}: schedules of several budgets; one, as {path}#{many[0]}, needed")
    return Schedule.from_json(content, path)


def _one_of_many(path: Path, name: str) -> Schedule:
    """The one of that name, K/steps, in a file of the pipeline."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; the schedules of a run (`boss run`) needed")
    content = path.read_bytes()
    known = _named(content)
    if not known:
        raise InputError(f"{path}#{name}: one schedule, without names; {path} needed")
    if name not in known:
        raise InputError(f"{path}#{name}: no such schedule; {', '.join(known)} known")
    budget, _, steps = name.partition("/")
    return Schedule.from_json(json.dumps(json.loads(content)[budget][steps]), path)


def _named(content: bytes) -> list[str]:
    """What the schedules in such a file are called; nothing for any other file."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, dict) or not found or not all(map(str.isdecimal, found)):
        return []
    return [f"{k}/{name}" for k, of in found.items() if isinstance(of, dict) for name in of]


def scheduler_lines(path: Path, folder: Path, mu: float | None) -> Iterator[str]:
    """What a diffusers scheduler would do to the schedule's steps; given by its configuration, or
    by the folder of its pipeline."""
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise InputError(
            "--scheduler: diffusers is not installed; pip install 'boss-flow[diffusers]' needed"
        ) from error
    if (folder / PIPELINE).is_file():
        folder = folder / "scheduler"
    file = folder / "scheduler_config.json" if folder.is_dir() else folder
    try:
        config = json.loads(file.read_text())
        made = _scheduler_class(config["_class_name"]).from_config(config)
    except _UNREADABLE as error:
        raise InputError(f"{file}: not the configuration of a scheduler ({error})") from error
    pipeline, takes_sigmas = _pipeline_call(file.parent.parent / PIPELINE, diffusers)
    if mu is not None and not made.config.get("use_dynamic_shifting"):
        raise InputError(f"--mu: {mu:g}, but {file} has no use_dynamic_shifting; none needed")
    try:
        found = export.check_scheduler(made, read_schedule(path), mu=mu)
    except InputError as error:
        # It cannot keep these steps, or nobody can say: neither matters to the snippets.
        yield f"{file}: {error}"
        if made.config.get("use_dynamic_shifting") and mu is None:
            yield from (f"  --mu: {line}" for line in shift_by_tokens(made.config))
        predicts = made.config.get("prediction_type", FLOW)
        if predicts != FLOW:
            yield f"  its network predicts {predicts}, no velocity of a flow: no steps for it"
            return
        yield "  the scheduler that --to diffusers prints takes its place and needs nothing of it"
        if not takes_sigmas:
            yield f"  {pipeline}: its call has no use for sigmas; --to diffusers-fixed is for it"
        return
    if not takes_sigmas:
        yield f"{file}: {pipeline}'s call has no use for sigmas; --to diffusers-fixed is for it"
        return
    if found.unchanged:
        yield f"{file}: takes these steps as they are"
        return
    yield f"{file}: changes these steps:"
    yield from (f"  {reason}" for reason in found.reasons)
    if found.sigmas_to_pass is None:
        yield "  no sigmas come out as these; use the scheduler that --to diffusers prints"
    else:
        passed = ", ".join(f"{sigma!r}" for sigma in found.sigmas_to_pass)
        yield f"  to keep it, pass sigmas=[{passed}]"
        if pipeline is None:
            yield "  a pipeline whose call takes no sigmas, as Wan's: --to diffusers-fixed"


def _scheduler_class(name: str) -> Any:
    import diffusers

    if name == "FixedFlowScheduler":
        from boss_core.interop.fixed_flow_scheduler import FixedFlowScheduler

        return FixedFlowScheduler
    return getattr(diffusers, name)


def _pipeline_call(index: Path, diffusers: Any) -> tuple[str | None, bool]:
    """The class of the pipeline around a scheduler's folder, None where there is none that is
    known, and whether its call takes ``sigmas``."""
    try:
        name = json.loads(index.read_text())["_class_name"]
        call = getattr(diffusers, name).__call__
    except _UNREADABLE:
        return None, True
    sets_times = name.startswith(_OWN_TIMES)
    return name, "sigmas" in inspect.signature(call).parameters and not sets_times


def shift_by_tokens(config: Any) -> Iterator[str]:
    """How pipelines come by mu: a line through two numbers of image tokens, where a configuration
    has them."""
    low, high = config.get("base_image_seq_len"), config.get("max_image_seq_len")
    if low is None or high is None or low == high:
        return
    slope = (config["max_shift"] - config["base_shift"]) / (high - low)
    yield (
        f"most pipelines pass {config['base_shift']:g} + {slope:.6g} (tokens - {low}), so"
        f" {config['max_shift']:g} at {high} image tokens"
    )
