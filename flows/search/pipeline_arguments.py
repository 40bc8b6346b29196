"""Calls of a pipeline made ready: their arguments are taken, heeded, and given to whole batches."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from boss_core.errors import lacks_memory
from boss_core.interop.diffusers_pipelines import estimate_pipeline_cost
from boss_core.interop.few_steps import chosen_at_start
from boss_core.interop.pipeline_arguments import refuse_ignored
from boss_core.interop.pipeline_checks import run_walk
from boss_core.interop.pipeline_networks import pipeline_networks
from boss_core.interop.recording import Walk
from boss_core.ode.timesteps import uniform
from flows.records.searches import say
from flows.search.images import image_files
from flows.search.pipeline_call import SampleCalls, check_names, is_text
from flows.search.refusals import pipeline_refusals

# A sample's velocity in a batch differs from that alone by less, in any dtype, unless the batch has
# other images.
_SAME = 0.05
# Of what tells samples apart, at the first evaluation: see `chosen_at_start`.
_CHOSEN = 0.3
# What a pipeline takes no batch of, by how it is called then.
_REFUSED = {"alone": "prompts with an image", "single": "prompts"}


def prepare_calls(pipeline: Any, calls: SampleCalls, batch_size: int) -> SampleCalls:
    """The calls as the pipeline takes them, after a few steps of single samples.

    InputError, in a line, for a pipeline that is no flow, for arguments that its call does not
    take, refuses (in its own words) or ignores: shared ones and those of the first row that has
    them (`boss_core.interop.pipeline_arguments.refuse_ignored`).
    """
    if calls.images is not None:
        return calls
    check_names(pipeline, calls)
    tried: set[str] = set()
    for sample in _kinds(calls):
        row, where = calls.row(sample), calls.where(sample)
        new = {name: place for name, place in where.items() if name not in tried}
        tried |= new.keys()
        with pipeline_refusals(pipeline, row.where if row.arguments else "--pipeline"):
            one = range(sample, sample + 1)
            estimate_pipeline_cost(pipeline, uniform(2), [calls.call(one, seed=0)], check=False)
            refuse_ignored(pipeline, calls.call(one, seed=0), new)
    _say_distilled(pipeline, calls)
    with pipeline_refusals(pipeline):
        images = _images(pipeline, calls, batch_size)
    if images in _REFUSED:
        name = type(pipeline).__name__
        say(f"pipeline: {name} takes no batch of {_REFUSED[images]}: one sample at a time")
    return replace(calls, images=images)


def _say_distilled(pipeline: Any, calls: SampleCalls) -> None:
    """Say so where the network looks like one for few steps, which cannot be known."""
    own = SampleCalls(calls.rows[:1], calls.shared)
    with pipeline_refusals(pipeline):
        one, other = (own.call(range(k, k + 1), seed=0) for k in range(2))
        share = chosen_at_start(pipeline, one, other)
    if share > _CHOSEN:
        say(
            f"pipeline: its network has chosen {min(share, 1.0):.0%} of a sample at the first"
            " evaluation, as those do that are distilled or straightened for few steps (turbo,"
            " schnell, lightning, LCM); a flow, about 2 %. Of such a network many steps are not"
            " better than few, and no teacher: take the model that it was made from"
        )


def _kinds(calls: SampleCalls) -> list[int]:
    """The first of the samples whose own arguments are alike: but for texts and images, of which
    a pipeline takes any. What it refuses of one of them would end a search that has begun."""
    first: dict[str, int] = {}
    for sample, row in enumerate(calls.rows):
        files = image_files(row.arguments)
        own = {k: None if k in files or is_text(k) else v for k, v in row.arguments.items()}
        first.setdefault(json.dumps(own, sort_keys=True), sample)
    return list(first.values())


def _takes_two(pipeline: Any, calls: SampleCalls) -> bool:
    """Whether a pipeline that takes a sample takes a call of two (Wan-VACE does not), of a row
    without an image; True where there is none."""
    plain = [row for row in calls.rows if not image_files({**calls.shared, **row.arguments})]
    if not plain:
        return True  # `_images` finds out
    own = SampleCalls(plain[:1], calls.shared)
    try:
        return _velocities(pipeline, own.call(range(2), seed=0)).shape[1] == 2
    except Exception as error:
        if lacks_memory(error):
            raise
        return False  # whatever a pipeline does with a batch that it does not take


def _images(pipeline: Any, calls: SampleCalls, batch_size: int) -> str:
    """How a batch is to be given the image of its samples, by trying.

    Most pipelines repeat one image for all prompts, and take a list for several images of each;
    Qwen-Image-Edit wants one a prompt; some refuse more than one prompt, with an image or at all.
    So what gives the second of two samples its velocity when it is alone is right.
    """
    if batch_size == 1:
        return "once"
    if not _takes_two(pipeline, calls):
        return "single"
    with_image = [row for row in calls.rows if image_files({**calls.shared, **row.arguments})]
    if not with_image:
        return "once"
    own = SampleCalls(with_image[:1], calls.shared)
    (alone,) = _velocities(pipeline, own.call(range(1, 2), seed=0)).unbind(1)
    for form in ("once", "each"):
        try:
            both = _velocities(pipeline, replace(own, images=form).call(range(2), seed=0))
        except Exception as error:
            if lacks_memory(error):
                raise
            continue  # whatever a pipeline does with images that it does not take
        second = both[:, -1]
        fits = both.shape[1] == 2 and second.shape == alone.shape
        if fits and (second - alone).norm() <= _SAME * alone.norm():
            return form
    return "alone"


def _velocities(pipeline: Any, call: Mapping[str, Any]) -> Tensor:
    walk = Walk(uniform(2), pipeline_networks(pipeline))
    velocities, _ = run_walk(pipeline, walk, call)
    return velocities.to(torch.float32, copy=True)
