"""Whether a pipeline's velocity is one of state and time, as costs of steps suppose.

The pipeline is given states of its own fine trajectory again, in a few steps of other sizes. Where
its velocity at the same state and time is another one, it depends on the number of the step
(guidance that is on for a share of the steps), on where the step ends (mean flows), or on the
steps before (momentum, caches): then the steps of a schedule would not be those of its costs.
"""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boss_core.errors import InputError
from boss_core.interop.pipeline_networks import attention_layers, own_processors
from boss_core.interop.recording import Point, Walk, recording_scheduler
from boss_core.ode.timesteps import uniform

# The same evaluation twice differs by less, in any dtype; what else a velocity may depend on
# makes more of a difference.
_SAME = 1e-3
_PROBE = 8


def probe_steps(count: int) -> list[list[int]]:
    """Grid indices of two walks of 8 steps each through a grid of ``count`` steps: small steps
    first, and small steps last. A bound at any share of the steps, beyond the first and the last
    of the grid, is on one side of a point there and on the other side of it in the grid."""
    if count < 2:
        return []
    steps = max(2, min(_PROBE, count - 1))
    late = [0, 1, *(max(k, round(count * (k / steps) ** 3)) for k in range(2, steps)), count]
    early = [count - k for k in reversed(late)]
    return [late] if late == early else [late, early]


class Repeat:
    """The random numbers that a call is about to draw, to be drawn again."""

    def __init__(self, call: Mapping[str, Any]) -> None:
        given = call.get("generator")
        each = given if isinstance(given, list | tuple) else [given]
        self.generators = [(g, g.get_state()) for g in each if isinstance(g, torch.Generator)]
        self.state = torch.get_rng_state()
        self.of_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def rewind(self) -> None:
        for generator, state in self.generators:
            generator.set_state(state)
        torch.set_rng_state(self.state)
        if self.of_cuda:
            torch.cuda.set_rng_state_all(self.of_cuda)


@contextmanager
def silent() -> Iterator[None]:
    """Inside, diffusers warns of nothing: of values that are only tried, or of what it has said of
    the user's own call already."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def check_told_steps(kind: Any) -> None:
    """InputError for a class of pipelines whose call is not told the number of its steps: they are
    a list of its own (Helios' pyramid, a number for each resolution; LTX-2's distilled sigmas)."""
    known = inspect.signature(kind.__call__).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    if "num_inference_steps" not in known and not anything:
        own = sorted(name for name in known if "inference_steps" in name or name == "sigmas")
        raise InputError(
            f"pipeline: {kind.__name__} takes no num_inference_steps"
            f"{f', but {own[0]}, steps of its own' if own else ''}; one that takes as many steps as"
            " it is told needed"
        )


def run_walk(
    pipeline: Any, walk: Walk, call: Mapping[str, Any]
) -> tuple[Tensor, NDArray[np.float64]]:
    """One call of a pipeline, whose scheduler is replaced meanwhile: what `Walk.end` returns."""
    take_walk(pipeline, walk, call)
    return walk.end()


@torch.no_grad()
def take_walk(pipeline: Any, walk: Walk, call: Mapping[str, Any]) -> None:
    """As `run_walk`, up to `Walk.end`."""
    own = pipeline.scheduler
    check_told_steps(type(pipeline))
    if within := _inner(pipeline):
        raise InputError(
            f"pipeline: {type(pipeline).__name__} leaves its steps to a pipeline within it; that"
            f" one, its {within}, needed"
        )
    handles = walk.hooks()
    walk.begin()
    try:
        # The scheduler has the grid whatever it is asked for, so that pipelines which take
        # `sigmas` and those which do not are driven alike.
        pipeline.scheduler = recording_scheduler(own, walk)
        with own_processors(attention_layers(walk.networks)):
            pipeline(**call, num_inference_steps=walk.count, output_type="latent")
    finally:
        pipeline.scheduler = own
        for handle in handles:
            handle.remove()


def _inner(pipeline: Any) -> str:
    """The attributes of a pipeline that are pipelines with the same scheduler (VisualCloze)."""
    from diffusers import DiffusionPipeline

    inner = {
        name: value
        for name, value in vars(pipeline).items()
        if isinstance(value, DiffusionPipeline)
        and getattr(value, "scheduler", None) is pipeline.scheduler
    }
    return " or ".join(f"{name} ({type(value).__name__})" for name, value in inner.items())


def compare_walks(
    pipeline: Any, walk: Walk, steps: Sequence[int], call: Mapping[str, Any], again: Repeat
) -> None:
    """Walk through the kept points of a walk's first call in other steps. InputError where the
    velocity at one of them is another than it was.

    again: to make the call as the walk made it. Kernels that add up in any order give another
    velocity each time: where one differs, the same steps are taken twice, and so much is allowed.
    """
    points = [walk.points[k] for k in steps[:-1]]
    times = walk.times[list(steps)]

    def probe() -> dict[int, Point]:
        again.rewind()
        found = Walk(times, walk.networks, keep=range(len(points)), follow=points)
        run_walk(pipeline, found, call)
        return found.points

    found = probe()
    if not all(map(torch.equal, found[0].states, points[0].states)):
        raise InputError(
            "pipeline: starts from other noise when it is called with the same generators"
            " again; one whose samples come out again needed"
        )
    apart = [k for k, before in enumerate(points) if _distance(found[k], before) > _SAME]
    if not apart:
        return
    twice = probe()
    for k in apart:
        before, now = points[k], found[k]
        if _distance(now, before) > _SAME + 4.0 * _distance(twice[k], now):
            raise InputError(
                f"pipeline: {type(pipeline).__name__} has another velocity at"
                f" t = {walk.times[steps[k]]:.4g} in step {k + 1} of {len(points)} than in step"
                f" {steps[k] + 1} of {walk.count}: {_reason(before, now)}"
            )


def _distance(a: Point, b: Point) -> float:
    """Of two velocities, relative to the second; 0 where that is not finite, which others say."""
    largest = 0.0
    for one, other in zip(a.velocities, b.velocities, strict=True):
        ratio = float((one.float() - other.float()).norm() / other.float().norm().clamp_min(1e-30))
        largest = max(largest, ratio if math.isfinite(ratio) else 0.0)
    return largest


def _reason(before: Point, now: Point) -> str:
    told = [name for name, value in before.told.items() if now.told.get(name, value) != value]
    if now.evaluations != before.evaluations:
        return (
            f"{now.evaluations:g} network evaluations for a sample, not {before.evaluations:g}:"
            " guidance is on for a share of the steps; guidance in all of them, or by time, needed"
        )
    if told:
        return (
            f"its network is told another {' and '.join(told)}, as where its step ends (mean flows)"
            " or by the number of the step; one of state and time needed"
        )
    return (
        "it depends on the number of the step, or on the steps before (guidance for a share of the"
        " steps, momentum, caches); one of state and time needed"
    )


def refuse_unused(
    pipeline: Any, networks: Mapping[str, torch.nn.Module], call: Mapping[str, Any]
) -> None:
    """InputError for guidance of a call that the velocity does not depend on: on a walk of 4 steps
    it is the same, bit for bit, with another ``guidance_scale`` (or ``true_cfg_scale``, ...), or
    without the negative prompt. Scales up to 1 ask for no guidance, which is what they get where
    they are ignored. The call can be made as if it had not been."""
    grid = uniform(4)
    again = Repeat(call)

    def velocities(changed: Mapping[str, Any]) -> Tensor:
        again.rewind()
        return run_walk(pipeline, Walk(grid, networks), changed)[0]

    def same_with(changed: Mapping[str, Any]) -> bool:
        try:
            return torch.equal(velocities(changed), wanted)
        except ValueError:  # a value that the pipeline refuses is one that it reads
            return False

    wanted = torch.empty(0)
    for name, value in call.items():
        changed = dict(call)
        if _is_guidance(name, value) and value > 1.0:
            changed[name] = value + 1.0
        elif name == "negative_prompt" and value is not None and any(value):
            del changed[name]
        else:
            continue
        if not wanted.numel():
            wanted = velocities(call)
        if same_with(changed):
            raise InputError(
                f"calls: {name}={value!r}, but the velocity of this {type(pipeline).__name__} does"
                f" not depend on it; none, or what its guidance takes{_guidance(pipeline, call)},"
                " needed"
            )
    again.rewind()


def _guidance(pipeline: Any, call: Mapping[str, Any]) -> str:
    """What else of guidance the pipeline's call takes, in brackets."""
    known = inspect.signature(type(pipeline).__call__).parameters
    named = [
        name
        for name in known
        if name not in call and (name == "negative_prompt" or "cfg" in name or "guidance" in name)
    ]
    return f" ({', '.join(named)})" if named else ""


def _is_guidance(name: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and "scale" in name and ("guidance" in name or "cfg" in name)
