"""Weights of ``multistep`` for a diffusers pipeline, fitted at its scheduler.

The weights of a step need the states of all samples before it, and a pipeline runs to its end once
it is called. So it is called once for each step: with the weights found so far, up to the step
whose weights are wanted, where its scheduler takes the inner products of the normal equations
(`boss_core.costs.fit`) and ends the call. K - 1 passes, of K (K + 1) / 2 - 1 evaluations a sample.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.costs.fit import FEWEST_NOISES, Fitted, FittedStep, fit_steps, step_products
from boss_core.costs.fitted import check_order
from boss_core.errors import InputError
from boss_core.interop.diffusers_schedulers import refuse_changes
from boss_core.interop.pipeline_checks import silent, take_walk
from boss_core.interop.pipeline_networks import pipeline_networks
from boss_core.interop.recording import Track, Walk
from boss_core.interop.teacher_forcing import KnotStates
from boss_core.ode.solver_table import LARGEST_ORDER, weights_of_steps
from boss_core.ode.timesteps import Times, validate_timesteps


@torch.no_grad()
def fit_pipeline_weights(
    pipeline: Any,
    timesteps: ArrayLike,
    calls: Callable[[], Iterable[Mapping[str, Any]]],
    teachers: Sequence[KnotStates],
    *,
    order: int = LARGEST_ORDER,
    on_call: Callable[[int], None] | None = None,
) -> Fitted:
    """Fit the weights of every step to the teacher's states at the knots.

    pipeline: as for `boss_core.interop.diffusers_pipelines.estimate_pipeline_cost`. timesteps: K +
        1 times from 0 to 1. order: velocities of a step, 2 or 3.
    calls: makes the arguments of the teacher's calls anew, with generators of the same seeds.
    teachers: of each of these calls, the states at the K + 1 knots
        (`boss_core.interop.teacher_forcing.teacher_states`), on the pipeline's device.
    on_call: called after each call with the evaluations of its samples.

    Raises InputError for fewer than `boss_core.costs.fit.FEWEST_NOISES` samples, states that are
    not finite, and as `take_walk` does.
    """
    check_order(order)
    times = validate_timesteps(timesteps)
    samples = sum(len(states.states[0][0]) for states in teachers)
    if samples < FEWEST_NOISES:
        raise InputError(f"calls: of {samples} samples; at least {FEWEST_NOISES} needed")
    prior = weights_of_steps("ab2", [float(h) for h in times[1:] - times[:-1]])
    found = [FittedStep((1.0,), (0.0,), 0.0, 0.0)]
    for k in range(1, len(times) - 1):
        products = []
        for call, teacher in zip(calls(), teachers, strict=True):
            walk = _FitWalk(times, pipeline, [step.weights for step in found[:k]], teacher, order)
            try:
                with silent():
                    take_walk(pipeline, walk, call)
            except _Fitted:
                pass
            else:
                raise InputError(
                    f"pipeline: took fewer than the {len(times) - 1} steps of the schedule; a call"
                    " that takes each once needed"
                )
            products.append(walk.products())
            if on_call is not None:
                on_call(len(products[-1]) * (k + 1))
        (step,) = fit_steps(torch.cat(products)[None], [prior[k]])
        if not all(map(torch.isfinite, map(torch.tensor, step.weights))):
            raise InputError(
                f"pipeline: states of {len(times) - 1} steps are not finite at t = {times[k]:g};"
                " another dtype, or more steps, needed"
            )
        found[k:] = [step]
    return Fitted(
        tuple(step.weights for step in found),
        tuple(step.standard_error for step in found),
        tuple(step.ridge for step in found),
        found[-1].left if len(found) > 1 else math.nan,  # of one step nothing is measured
    )


class _Fitted(Exception):  # noqa: N818 - the end, no error
    """The products of the step are taken: nothing that the pipeline does after it is needed."""


class _FitWalk(Walk):
    """Steps with given weights, up to the first that has none."""

    def __init__(
        self,
        times: Times,
        pipeline: Any,
        weights: Sequence[tuple[float, ...]],
        teacher: KnotStates,
        order: int,
    ) -> None:
        super().__init__(times, pipeline_networks(pipeline))
        self.weights, self.teacher, self.order = weights, teacher, order
        self.before: dict[int, list[Tensor]] = {}  # of each track, the latest first
        self.found: list[Tensor] = []

    def take(self, track: Track, velocity: Tensor, sample: Tensor) -> Tensor:
        k = track.steps
        place = track.place if k else len(self.stepping)
        now = velocity.float()
        before = self.before.get(place, [])
        if k == len(self.weights):
            self._measure(track, now, before, sample)
            track.steps += 1
            return sample
        of_step = self.weights[k]
        used = of_step[0] * now
        for weight, old in zip(of_step[1:], before, strict=False):
            used = used + weight * old
        self.before[place] = [now.clone(), *before][: self.order - 1]
        return super().take(track, used, sample)

    def _measure(self, track: Track, now: Tensor, before: Sequence[Tensor], sample: Tensor) -> None:
        k = track.steps
        y = sample.float() if track.state is None else track.state
        if k:
            refuse_changes(sample, y, k)
        place = len(self.found)
        target = self.teacher.states[place][k + 1]
        step = float(self.times[k + 1] - self.times[k])
        vectors = [y, now, *before, target]
        if place == 0 and self.teacher.seen is not None:
            vectors = [vector * self.teacher.seen for vector in vectors]
        y, now, *before, target = vectors
        length = step if self.inverted else -step  # velocities are dx/dsigma
        self.found.append(step_products(y, now, before, target, length))
        if len(self.found) == len(self.teacher.states):
            raise _Fitted

    def _hold(self, track: Track, k: int, velocity: Tensor) -> Tensor:
        return velocity

    def products(self) -> Tensor:
        """Those of all states that the pipeline steps, together."""
        return torch.stack(self.found).sum(dim=0)
