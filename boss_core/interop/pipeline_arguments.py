"""Whether a pipeline heeds what it is called with.

Pipelines take arguments that they do nothing with: Qwen-Image a ``guidance_scale`` (which only a
distilled network would read), or a ``true_cfg_scale`` without a negative prompt. A schedule would
then be for other calls than its owner thinks. So each argument is tried: the call is made again in
a few steps with other values of it, and one whose values all give the same latents, bit for bit, is
refused.

Who is refused wrongly is stopped, though nothing that an argument without effect could do is lost
by leaving it out. So what may rightly change no latents is let through: see `refuse_ignored`.
"""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boss_core.errors import InputError, lacks_memory
from boss_core.interop.pipeline_checks import Repeat, run_walk, silent
from boss_core.interop.pipeline_networks import pipeline_networks
from boss_core.interop.recording import Walk
from boss_core.ode.timesteps import uniform

_STEPS = 4
# Of decoding and output, what a video is played at, and limits, which may have nothing to cut.
_MAY_BE_IDLE = re.compile(r"(decode|output|return|callback|max)_.*|(.*_)?fps|frame_rate")
_OTHER_TEXTS = ("", "something else altogether, in other words")


def refuse_ignored(pipeline: Any, call: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """InputError for an argument whose value does not matter to the latents of a call: the states'
    shape, the velocities and the network evaluations of a walk of 4 steps are the same with any of
    up to three other values.

    pipeline, call: as for `boss_core.interop.diffusers_pipelines.estimate_pipeline_cost`; a call of
        one sample is the cheapest. given: the arguments to try, each with what names its place in
        the error, as ``--call``.

    Tried are numbers, texts and images. Let through are: switches, lists and dictionaries, which
    often say what to do in a case that this call is not; the default value, which asks for nothing,
    but for guidance scales; guidance scales up to 1, which ask for none; what a change makes the
    pipeline fail on, as it was read then; and by their names limits (``max_...``), arguments of
    decoding and output (``decode_...``, ``output_...``) and frame rates.
    """
    trial = _Trial(pipeline)
    with silent():
        tried = [n for n in given if n in call and _worth_trying(pipeline, n, call[n])]
        wanted = trial.walk(call) if tried else None
        for name in tried:
            others = _others(call[name])
            if any(_differs(trial.attempt({**call, name: o}), wanted) for o in others):
                continue
            value = call[name][0] if isinstance(call[name], list) else call[name]
            shown = "" if _is_image(value) else f"={value!r}"
            raise InputError(
                f"{given[name]}: {name}{shown} changes nothing in the latents of this"
                f" {type(pipeline).__name__}; none{_hint(trial, call, name)} needed"
            )


# Velocities, and evaluations in each step; None where the pipeline fails.
_Found = tuple[Tensor, NDArray[np.float64]] | None


class _Trial:
    """A pipeline to be called again and again in a few steps."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.networks = pipeline_networks(pipeline)
        self.known = inspect.signature(type(pipeline).__call__).parameters

    def walk(self, call: Mapping[str, Any]) -> _Found:
        """As if the call's generators had not been drawn from, before and after."""
        again = Repeat(call)
        try:
            return run_walk(self.pipeline, Walk(uniform(_STEPS), self.networks), call)
        finally:
            again.rewind()

    def attempt(self, call: Mapping[str, Any]) -> _Found:
        """None where the pipeline fails, whatever by: a value that it fails on is one it reads."""
        try:
            return self.walk(call)
        except Exception as error:
            if lacks_memory(error):
                raise
            return None


def _differs(one: _Found, other: _Found) -> bool:
    if one is None or other is None:
        return one is not other
    same = torch.equal(one[0], other[0]) if one[0].shape == other[0].shape else False
    return not (same and np.array_equal(one[1], other[1]))


def _worth_trying(pipeline: Any, name: str, value: Any) -> bool:
    if _MAY_BE_IDLE.fullmatch(name):
        return False
    one = value[0] if isinstance(value, list) and value else value
    if _is_image(one):
        return True
    if _is_scale(name) and _is_number(value):
        return bool(value > 1)
    parameter = inspect.signature(type(pipeline).__call__).parameters.get(name)
    asks = parameter is None or parameter.default != value
    return asks and (isinstance(one, str) or _is_number(value))


def _others(value: Any) -> list[Any]:
    """Other values of an argument, those that cost least first."""
    if isinstance(value, list):
        return [[other] * len(value) for other in _others(value[0])]
    if isinstance(value, str):
        return [text for text in _OTHER_TEXTS if text != value]
    if _is_image(value):
        from PIL import Image, ImageOps

        plain = [Image.new("RGB", value.size, colour) for colour in ("black", "white")]
        return [ImageOps.invert(value.convert("RGB")), *plain]
    if isinstance(value, int):
        return [other for other in (value // 2, value + 1, 2 * value) if other != value]
    return [other for other in (value + 1.0, value / 2, 0.0) if other != value]


def _hint(trial: _Trial, call: Mapping[str, Any], name: str) -> str:
    """What would make an argument of guidance count, found by trying."""
    scale, text = _is_scale(name), name.startswith("negative_prompt")
    if not (scale or text):
        return ""
    scales = [n for n in trial.known if _is_scale(n) and n != name]
    negative: dict[str, Any] = {}
    if "negative_prompt" in trial.known and call.get("negative_prompt") is None:
        prompts, other = call.get("prompt", ""), _OTHER_TEXTS[1]
        several = isinstance(prompts, list)
        negative = {"negative_prompt": [other] * len(prompts) if several else other}
    more: list[dict[str, Any]] = [negative] if scale and negative else []
    more += [{s: 4.0} for s in scales]
    more += [{s: 4.0} | negative for s in scales if negative and not text]
    for add in more:
        names = " and ".join(f"{n} above 1" if n in scales else n for n in add)
        asked = {**call, **add}
        if _matters(trial, asked, {name: _others(call[name])[0]}):
            return f", or {names} with it,"
        if scale and _matters(trial, asked, {n: 2.0 for n in add if n in scales}):
            return f", or {names} in its place,"
    return ""


def _matters(trial: _Trial, call: Mapping[str, Any], change: Mapping[str, Any]) -> bool:
    found, changed = trial.attempt(call), trial.attempt({**call, **change})
    return found is not None and changed is not None and _differs(found, changed)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_scale(name: str) -> bool:
    return "scale" in name and ("guidance" in name or "cfg" in name)


def _is_image(value: Any) -> bool:
    from PIL import Image

    return isinstance(value, Image.Image)
