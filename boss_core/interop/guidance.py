"""How a pipeline is called without guidance, so that a step takes one network evaluation."""

import inspect
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import ArrayLike

from boss_core.errors import InputError
from boss_core.interop.pipeline_checks import Repeat, silent, take_walk
from boss_core.interop.pipeline_networks import pipeline_networks
from boss_core.interop.recording import DENOISERS, Walk
from boss_core.ode.timesteps import Times, validate_timesteps

# Guidance by perturbed attention, by skipped blocks and between modalities, and where each is off.
_OTHERS = {"pag": 0.0, "stg": 0.0, "modality": 1.0}


def without_guidance(
    pipeline: Any, call: Mapping[str, Any], timesteps: ArrayLike
) -> tuple[dict[str, Any], float]:
    """What to change in a pipeline's call so that each network is evaluated once for a sample in
    every step; and the evaluations for one sample in a step then (more than 1 with control
    networks).

    Pipelines turn guidance off in ways of their own: a scale of 1, of 0, by another name, or
    without a negative prompt. Each is tried, on these steps, until the networks are called once.
    Where guidance is an input of a network (FLUX.1-dev) that takes one evaluation, it stays as it
    is, as part of the call.

    call: for a few samples; it can be made as if it had not been. timesteps: those of a schedule.
    InputError where no argument turns guidance off, and where the call as it is is none of a
    flow's.
    """
    times = validate_timesteps(timesteps)
    again = Repeat(call)
    best: tuple[float, dict[str, Any]] | None = None
    lowest: tuple[float, dict[str, Any]] = math.inf, {}
    tried = []

    def count(changed: dict[str, Any]) -> None:
        nonlocal best, lowest
        again.rewind()
        counted = _evaluations(pipeline, {**call, **changed}, times, refused=bool(changed))
        tried.append(_said(changed))
        of_step = sum(counted.values()) if counted else math.inf
        if of_step < lowest[0]:
            lowest = of_step, changed
        if counted and _is_plain(counted) and (best is None or of_step < best[0]):
            best = of_step, changed

    for changed in _candidates(pipeline, call):
        count(changed)
        if best is not None and best[0] <= 1.0:
            break
    # Guidance of other kinds beside it, of which each takes evaluations of its own.
    for off in _others_off(pipeline):
        if best is None:
            count({**lowest[1], **off})
    again.rewind()
    if best is None:
        raise InputError(
            f"pipeline: no argument of {type(pipeline).__name__} turns its guidance off: its"
            f" networks are evaluated more than once a step, or others beside them, with"
            f" {'; '.join(tried)}; one that can be called without guidance needed"
        )
    of_step, changed = best
    return changed, of_step


def _candidates(pipeline: Any, call: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Changes of a call, from none on; a negative prompt goes last, as some need it to be there."""
    known = inspect.signature(type(pipeline).__call__).parameters
    # guidance_rescale is no scale: it corrects the contrast of what guidance gives.
    scales = [
        name for name in known if name.endswith(("guidance_scale", "cfg_scale", "guidance_scale_2"))
    ]
    negative = {name: None for name in call if name.startswith("negative_")}
    yield {}
    for without in ({}, negative) if negative else ({},):
        if without:
            yield dict(without)
        for value in (1.0, 0.0):
            for name in scales:
                yield {name: value, **without}
            if len(scales) > 1:
                yield {**dict.fromkeys(scales, value), **without}


def _others_off(pipeline: Any) -> list[dict[str, float]]:
    """What turns off guidance of other kinds; scales of one kind together, as LTX-2 has each for
    images and for sound."""
    known = inspect.signature(type(pipeline).__call__).parameters
    found = [
        {name: value for name in known if name.endswith(f"{kind}_scale")}
        for kind, value in _OTHERS.items()
    ]
    return [off for off in found if off]


def _evaluations(
    pipeline: Any, call: Mapping[str, Any], times: Times, *, refused: bool
) -> dict[str, float] | None:
    """Of each network, the most for one sample in a step; those of a second denoiser, which takes
    other noise levels, as the first's. ``refused``: None where the pipeline refuses the call; else
    what it raises."""
    walk = Walk(times, pipeline_networks(pipeline))
    try:
        with silent():
            take_walk(pipeline, walk, call)
        walk.finish()
    except (ValueError, TypeError, AttributeError):
        if refused:
            return None
        raise
    found: dict[str, float] = {}
    for counted in walk.of_steps():
        of_step: Counter[str] = Counter()
        for name, number in counted.items():
            of_step["denoiser" if name in DENOISERS else name] += number
        for name, number in of_step.items():
            found[name] = max(found.get(name, 0.0), number / walk.samples)
    return found


def _is_plain(counted: Mapping[str, float]) -> bool:
    """Whether a step takes each network once, and none but the denoiser and control networks: what
    else is evaluated beside it (Ideogram 4) is for guidance."""
    controls = (name.startswith("controlnet") for name in counted if name != "denoiser")
    return all(controls) and all(number <= 1.0 for number in counted.values())


def _said(changed: Mapping[str, Any]) -> str:
    if not changed:
        return "the call as it is"
    return " and ".join(
        f"no {name}" if value is None else f"{name}={value:g}" for name, value in changed.items()
    )
