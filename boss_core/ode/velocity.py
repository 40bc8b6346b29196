"""What the rest of the library asks of a network: a velocity ``v(x, t)``, or one of labels too."""

from collections.abc import Callable, Mapping, Sized
from typing import Protocol, cast

import torch
from torch import Tensor

from boss_core.errors import InputError

# How far two evaluations at the same states may be apart, relative to them: more than rounding to
# bfloat16 inside a network makes, and less than dropout does.
_SAME = 0.01


class VelocityField(Protocol):
    """The velocity ``dx/dt`` of a flow from noise (t = 0) to data (t = 1).

    It may change its arguments in place: this library always passes copies.
    """

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """``x``: (B, ...) states; ``t``: (B,) times in [0, 1]; returns (B, ...)."""
        ...


class ConditionalVelocity(Protocol):
    """The velocity of a flow whose data depends on a class."""

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor, /) -> Tensor:
        """``x``, ``t``: as for `VelocityField`; ``labels``: (B,) int64 in 0..classes-1."""
        ...


Velocity = VelocityField | ConditionalVelocity


def with_labels(network: Velocity, labels: Tensor | None) -> VelocityField:
    """The velocity of a batch whose samples have these labels, (B,) int64, on its device; None
    for a network that takes none, which is returned as it is."""
    if labels is None:
        return cast(VelocityField, network)
    conditional = cast(ConditionalVelocity, network)
    # A copy, as of the states in `evaluate`: one that drops labels may do so in place.
    return lambda x, t: conditional(x, t, labels.clone())


def evaluate(velocity: VelocityField, x: Tensor, t: Tensor) -> Tensor:
    """``v(x, t)``, by which all solvers and searches call a network; InputError unless the result
    is a velocity (`check_output`).

    The network gets copies. One that rescales its input in place would otherwise change the
    states, or the caller's noise, from which the sampler goes on: other samples and another
    schedule, without a word. A copy is little beside what a network reads and writes.
    """
    v = velocity(x.clone(), t.clone())
    check_output(v, x)
    return v


def check_labels(labels: Sized | None, samples: int) -> None:
    """InputError when there are labels, but not one for each sample."""
    if labels is not None and len(labels) != samples:
        raise InputError(f"labels: {len(labels)} for {samples} samples; one for each needed")


class CountedVelocity:
    """A velocity that counts its network evaluations (NFE), at the call itself.

    ``evaluations_per_call`` is 2 for a velocity that evaluates its network twice for each
    call, as classifier-free guidance does.
    """

    def __init__(self, velocity: Velocity, evaluations_per_call: int = 1) -> None:
        self.velocity = velocity
        self.evaluations_per_call = evaluations_per_call
        self.nfe = 0

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None, /) -> Tensor:
        self.nfe += self.evaluations_per_call
        return with_labels(self.velocity, labels)(x, t)


def time_first(network: Callable[[Tensor, Tensor], Tensor]) -> VelocityField:
    """The velocity of a network called as ``network(t, x)``, as in torchcfm and torchdyn."""
    return lambda x, t: network(t, x)


def scalar_time(network: Callable[[Tensor, Tensor], Tensor]) -> VelocityField:
    """The velocity of a network called as ``network(x, t)`` with one time, of shape (), for the
    whole batch. InputError when the times of a batch differ, as they do in training."""

    def velocity(x: Tensor, t: Tensor, /) -> Tensor:
        if not (t == t[0]).all():
            raise InputError(
                f"t: {float(t.min()):g} to {float(t.max()):g} in one batch; this network takes"
                " one time for all samples"
            )
        return network(x, t[0])

    return velocity


def checked_velocity(velocity: VelocityField) -> VelocityField:
    """The same velocity, with every call checked. InputError when its result is no velocity
    (`check_output`) or not finite, or when it changes its states or times in place, which the
    solvers here allow and most others do not. To look at every value it waits for the device: use
    it for first tries."""

    def checked(x: Tensor, t: Tensor, /) -> Tensor:
        given, at = x.clone(), t.clone()
        v = velocity(given, at)
        check_output(v, x)
        for name, before, after in (("states", x, given), ("times", t, at)):
            # Of any bits: a state that is NaN already has not changed.
            if not torch.equal(before.nan_to_num(), after.nan_to_num()):
                raise InputError(
                    f"velocity: changes its {name} in place; a network that leaves them as they"
                    " are, as v(x.clone(), t.clone()), needed"
                )
        check_finite(v, t)
        return v

    return checked


@torch.no_grad()
def check_repeats(velocity: VelocityField, x: Tensor) -> None:
    """InputError unless the velocity at states ``x`` (B, ...) and t = 1/2 is of each state and
    the time alone: the same, within 1 %, when half of the states are others.

    A network behind a function may still be in training mode, where dropout makes every
    evaluation another and batch normalisation mixes the samples. Two evaluations of the batch.
    One state, B = 1, has no others beside it: a velocity that mixes samples passes then.
    """
    times = torch.full((len(x),), 0.5, dtype=x.dtype, device=x.device)
    kept = (len(x) + 1) // 2
    others = x.clone()
    others[kept:] *= 3.0
    before, after = (evaluate(velocity, states, times)[:kept] for states in (x, others))
    apart = float((after - before).norm() / before.norm().clamp_min(1e-30))
    if apart > _SAME:
        raise InputError(
            f"velocity: {apart:.0%} apart at the same states and times with other samples beside"
            " them: random, or in training mode (dropout, batch norm; eval() ends it); one of"
            " state and time alone needed"
        )


def check_finite(v: Tensor, t: Tensor) -> None:
    """InputError naming the first sample whose velocity is not finite, and its time."""
    finite = v.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        where = int(finite.int().argmin())
        raise InputError(
            f"velocity: not finite at t = {float(t[where]):g} (sample {where});"
            " a network with finite outputs needed"
        )


def check_output(v: object, x: Tensor) -> None:
    """InputError unless the velocity is a tensor of the shape, dtype and device of its states.
    Broadcasting and promotion would hide another, and sample something else."""
    if not isinstance(v, Tensor):
        raise InputError(
            f"velocity: returned {_kind(v)}; a tensor of the shape of its states,"
            f" {tuple(x.shape)}, needed"
        )
    if v.shape != x.shape:
        raise InputError(
            f"velocity: returned shape {tuple(v.shape)} for states of shape {tuple(x.shape)};"
            " the same shape needed"
        )
    if v.dtype != x.dtype:
        raise InputError(
            f"velocity: returned {v.dtype} for states of {x.dtype}; the same dtype needed"
        )
    if v.device != x.device:
        raise InputError(
            f"velocity: returned a tensor on {v.device} for states on {x.device}; the same device"
            " needed"
        )


def _kind(value: object) -> str:
    """What a network returned in place of a tensor, in a few words."""
    if value is None:
        return "None"
    name = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {name} with {', '.join(map(repr, value)) or 'no entries'}"
    if isinstance(value, list | tuple):
        return f"a {name} of {len(value)}"
    return f"a {name}"
