"""Networks that are distilled for a few steps: their velocity is no flow's from noise to data, and
their many fine steps are nothing to search on, or to learn from.

Some say so in their files. Of the others a sign can be measured. A flow that is learned from pairs
of noise and data knows nothing of the sample where there is noise alone: there its velocity is
E[x_1] - x_0, whose whole step leads to one and the same mean from any noise. So does a guided one,
which is a sum of such. A network that is distilled answers with a sample at once.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from boss_core.errors import InputError
from boss_core.interop.pipeline_checks import run_walk, silent
from boss_core.interop.pipeline_networks import pipeline_networks
from boss_core.interop.recording import Walk
from boss_core.ode.timesteps import uniform

# Schedulers that are for such networks alone, by what is in their names.
_SCHEDULERS = ("LCM", "TCD", "SCM")
_NEEDED = (
    "distilled for a few steps of its own, and many fine ones are none of a flow; the model that it"
    " was made from, or another flow-matching one needed"
)
_STEPS = 8
# Ends that differ by less than this share of the noise are all but given, as by an image.
_GIVEN = 0.01


def refuse_distilled(kind: type, scheduler: str, config: Mapping[str, Any]) -> None:
    """InputError for a pipeline whose files say that its network is distilled for few steps: before
    any weights are needed.

    kind: the pipeline's class. scheduler: the name of its scheduler's. config: of the pipeline, as
    in ``model_index.json``; what it leaves out is the default of the class.
    """
    if any(part in scheduler for part in _SCHEDULERS):
        raise InputError(
            f"pipeline: {kind.__name__} with a {scheduler}, which is for a network {_NEEDED}"
        )
    default = inspect.signature(kind).parameters.get("is_distilled")
    said = config.get("is_distilled", False if default is None else default.default)
    if said is True:
        raise InputError(
            f"pipeline: the model_index.json of this {kind.__name__} says is_distilled: its network"
            f" is {_NEEDED}"
        )


def refuse_turbo(kind: type, networks: Mapping[str, Any]) -> None:
    """As `refuse_distilled`, by the configurations of the networks (ACE-Step's ``is_turbo``)."""
    for name, network in networks.items():
        config = getattr(network, "config", {})
        for mark, value in (("is_turbo", True), ("model_version", "turbo")):
            if getattr(config, mark, None) == value:
                raise InputError(
                    f"pipeline: the configuration of the {name} of this {kind.__name__} has"
                    f" {mark}={value}: it is {_NEEDED}"
                )


def chosen_at_start(pipeline: Any, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """How much of what tells two samples apart is chosen at the first evaluation: the squared
    distance between where the velocities at the noise lead in one step, as a share of that between
    the ends of 8 steps.

    0 of a flow that was learned from pairs of noise and data (trained ones of digits and of
    CIFAR-10: 2 and 1 %), about 1 of networks that answer with a sample at once. Students of the
    digits' flow, straight between steps of its trajectories, have 57 % in 1 step, 17 % in 2 and 4 %
    in 4: those for more than one cannot be told by it. Of random networks it says nothing. 0 too
    where the ends are almost the same.

    one, other: calls of a sample each that differ by their noise alone.
    """
    with silent():
        (x, first, end), (y, second, last) = (_walked(pipeline, call) for call in (one, other))
    apart = float((end - last).square().sum())
    if apart <= _GIVEN * float((x - y).square().sum()):
        return 0.0
    return float((first - second).square().sum()) / apart


def _walked(pipeline: Any, call: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Of a call: its noise, and where one step and many take it, (elements,) each."""
    walk = Walk(uniform(_STEPS), pipeline_networks(pipeline), keep=[0])
    velocities, _ = run_walk(pipeline, walk, call)
    sign = 1.0 if walk.inverted else -1.0  # dx/dsigma, or dx/dt
    noise = [state.float().flatten(1) for state in walk.points[0].states]
    if walk.seen is not None:
        noise[0] = noise[0] * walk.seen.flatten(1)
    start = torch.cat(noise, dim=1)
    steps = sign * velocities.float()
    return start, start + steps[0], start + steps.mean(dim=0)
