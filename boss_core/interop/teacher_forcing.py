"""Straightening a diffusers pipeline at its scheduler, with no code for any one pipeline.

The teacher is the pipeline as it is, guidance on: a scheduler in the place of its own keeps the
states of its fine trajectory at the knots of the schedules. The student is the pipeline's own call
without guidance, and with gradients. Its scheduler is handed the velocity at each knot, takes the
loss of eq. 9 of the paper, and answers with the teacher's state at the next knot, wherever the
student's velocity would have led (teacher forcing). So one call trains all steps, one graph at a
time; packed latents, conditions, signs, other networks and control networks stay the pipeline's
business.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from boss_core.errors import InputError
from boss_core.interop.pipeline_checks import silent, take_walk
from boss_core.interop.pipeline_networks import (
    attention_layers,
    own_processors,
    pipeline_networks,
)
from boss_core.interop.recording import Track, Walk, recording_scheduler
from boss_core.ode.timesteps import Times, validate_timesteps
from boss_core.straightening.segments import chord_weights


@dataclass(frozen=True)
class KnotStates:
    """The teacher's states of one call at some points of its grid.

    states: for each state that the pipeline steps (LTX-2 has one of images and one of sound),
        (U, B, ...) float32 at the U knots.
    seen: which elements of the first state the networks see, (B, ...) bool; None for all. Where
        the pipeline puts a given frame in their place, velocities are discarded.
    """

    states: tuple[Tensor, ...]
    seen: Tensor | None = None

    def at(self, places: Sequence[int]) -> "KnotStates":
        """Those at some of the knots, by their places among the U."""
        chosen = list(places)
        return KnotStates(tuple(of_track[chosen] for of_track in self.states), self.seen)

    def to(self, device: torch.device | str) -> "KnotStates":
        seen = None if self.seen is None else self.seen.to(device, non_blocking=True)
        return KnotStates(tuple(s.to(device, non_blocking=True) for s in self.states), seen)


def teacher_states(
    pipeline: Any,
    timesteps: ArrayLike,
    knots: Sequence[int],
    call: Mapping[str, Any],
    *,
    on_step: Callable[[int], None] | None = None,
) -> tuple[KnotStates, NDArray[np.float64]]:
    """Walk a call of a pipeline on the fine grid, by Euler in float32, and keep the states at the
    knots; and the network evaluations for one sample in each step, (n,).

    timesteps: the n + 1 times of the grid. knots: increasing indices of it, from 0 on; the union
    of all schedules' knots serves every budget. call: as for
    `boss_core.interop.diffusers_pipelines.estimate_pipeline_cost`. on_step: called after each grid
    step with the number of samples. InputError as there, and for states that are not finite.
    """
    walk = _StatesWalk(validate_timesteps(timesteps), pipeline, knots, on_step)
    take_walk(pipeline, walk, call)
    evaluations = walk.finish()
    found = tuple(torch.stack(states) for states in walk.states)
    if not all(states[-1].isfinite().all() for states in found):
        raise InputError(
            f"pipeline: the states of {type(pipeline).__name__} are not finite at the end of its"
            " fine trajectory; another dtype (bfloat16 or float32) may help"
        )
    return KnotStates(found, walk.seen), evaluations


class _StatesWalk(Walk):
    """Keeps states at knots, and no velocities."""

    def __init__(
        self,
        times: Times,
        pipeline: Any,
        knots: Sequence[int],
        on_step: Callable[[int], None] | None,
    ) -> None:
        super().__init__(times, pipeline_networks(pipeline), on_step=on_step)
        self.knots = frozenset(knots)
        self.states: list[list[Tensor]] = []

    def take(self, track: Track, velocity: Tensor, sample: Tensor) -> Tensor:
        if track.steps == 0:
            self.states.append([sample.float().clone()] if 0 in self.knots else [])
        state = super().take(track, velocity, sample)
        if track.steps in self.knots:
            assert track.state is not None
            self.states[track.place].append(track.state)  # the next step makes a new one
        return state

    def _hold(self, track: Track, k: int, velocity: Tensor) -> Tensor:
        return velocity


class _TaughtAll(Exception):  # noqa: N818 - the end, no error
    """The last step is taken: nothing that the pipeline does after it is needed."""


def straighten_call(
    pipeline: Any,
    timesteps: ArrayLike,
    solver: str,
    call: Mapping[str, Any],
    teacher: KnotStates,
    on_backward: Callable[[int], None] | None,
    *,
    weights: Sequence[Sequence[float]] | None = None,
    scale: float = 1.0,
    check_start: bool = True,
    layers: Sequence[Any] | None = None,
) -> Tensor:
    """One call of the student on the teacher's states, and the gradients of its loss.

    timesteps: the K + 1 times of the schedule. solver: a linear multistep method that the chords
        are weighted for (`boss_core.straightening.segments.chord_weights`).
    call: as the teacher's, without guidance (`boss_core.interop.guidance.without_guidance`) and
        with generators of the same seeds.
    teacher: its states at the K + 1 knots, on the pipeline's device.
    on_backward: called with each step k once the gradients of ``scale / K`` times its loss have
        been added to the parameters that need one: the graph of a step is freed before the next.
        None: the losses alone, without any gradient.
    weights: of solver ``multistep``, those of the schedule.
    check_start: whether the student starts from the teacher's noise, for which the host waits.
    layers: the pipeline's `attention_layers`, for whoever calls this often: a thousand modules are
        looked through to find them, and a fast card waits.
    Returns the losses of the K steps, (K,) float32 on the device, without gradients: means over
    samples and elements of the squared distance to the chord (eq. 9).

    InputError where no gradient reaches the velocity, the student does not start from the
    teacher's noise, or its steps are not the schedule's.
    """
    times = validate_timesteps(timesteps)
    chords = chord_weights(times, solver, weights)
    walk = _ForcedWalk(times, chords, teacher, on_backward, scale, check_start)
    walk.caches = _caches(pipeline)
    layers = attention_layers(pipeline_networks(pipeline)) if layers is None else layers
    own = pipeline.scheduler
    run = inspect.unwrap(type(pipeline).__call__)  # without its torch.no_grad
    try:
        pipeline.scheduler = recording_scheduler(own, walk)
        on = torch.set_grad_enabled(on_backward is not None)
        with on, silent(), own_processors(layers):
            run(pipeline, **call, num_inference_steps=len(times) - 1, output_type="latent")
    except _TaughtAll:
        pass
    finally:
        pipeline.scheduler = own
    if len(walk.losses) != len(times) - 1:
        raise InputError(
            f"pipeline: took {len(walk.losses)} of the {len(times) - 1} steps of the schedule;"
            " a call that takes each once, with every state that the teacher has, needed"
        )
    return torch.stack(walk.losses)


class _ForcedWalk:
    """Steps from each of the teacher's knots to the next, and the losses on the way."""

    def __init__(
        self,
        times: Times,
        weights: Times,
        teacher: KnotStates,
        on_backward: Callable[[int], None] | None,
        scale: float,
        check_start: bool,
    ) -> None:
        self.times, self.weights, self.teacher = times, weights, teacher
        self.on_backward, self.scale, self.check_start = on_backward, scale, check_start
        self.tracks: list[Track] = []
        self.inverted = False
        self.caches = ""  # how the pipeline is told to keep nothing
        self.stepping = 0
        self.pending: list[Tensor] = []  # squared errors of the states that took this step
        self.losses: list[Tensor] = []
        self.elements: int | Tensor = sum(states[0].numel() for states in teacher.states)
        if teacher.seen is not None:
            self.elements = self.elements - (~teacher.seen).sum()

    def take(self, track: Track, velocity: Tensor, sample: Tensor) -> Tensor:
        k = track.steps
        if k == 0:
            track.place, self.stepping = self.stepping, self.stepping + 1
        if track.place >= len(self.teacher.states) or k != len(self.losses):
            raise InputError(
                "pipeline: steps its states in another order than the teacher did, from step"
                f" {k + 1} on; the teacher's own call without guidance needed"
            )
        states = self.teacher.states[track.place]
        if k == 0 and self.check_start:
            _check_start(sample, states[0])
        errors = (velocity.float() - self._target(states, k)).square()
        if track.place == 0 and self.teacher.seen is not None:
            errors = errors * self.teacher.seen
        self.pending.append(errors.sum())
        track.steps += 1
        if len(self.pending) == len(self.teacher.states):
            self._backward(k)
        return states[k + 1].to(sample.dtype, copy=True)

    def _target(self, states: Tensor, k: int) -> Tensor:
        """What the velocity has to be at knot k, as dx/dsigma."""
        target = torch.zeros_like(states[0])
        for back, weight in enumerate(self.weights[k]):
            if weight:
                start = k - back
                step = float(self.times[start + 1] - self.times[start])
                rise = step if self.inverted else -step  # of the noise level
                target.add_(states[start + 1] - states[start], alpha=float(weight) / rise)
        return target

    def _backward(self, k: int) -> None:
        loss = torch.stack(self.pending).sum() / self.elements
        self.pending = []
        steps = len(self.times) - 1
        if self.on_backward is not None:
            # One of several states may be stepped by a constant (the sound of LTX-2's HDR).
            if not loss.requires_grad:
                raise InputError(
                    "pipeline: no gradient reaches its velocity (its call turns them off within,"
                    " or nothing that it evaluates is to be trained); one that can be trained"
                    " needed"
                )
            _add_gradients(loss * (self.scale / steps), self.caches)
            self.on_backward(k)
        self.losses.append(loss.detach())
        if len(self.losses) == steps:
            raise _TaughtAll


def _caches(pipeline: Any) -> str:
    """The switches of caches among the arguments of a pipeline's call (``use_kv_cache`` of
    Qwen-Image 2.1), turned off; empty where there are none."""
    known = inspect.signature(type(pipeline).__call__).parameters
    return " or ".join(f"{n}=False" for n, p in known.items() if "cache" in n and p.default is True)


def _add_gradients(loss: Tensor, caches: str) -> None:
    try:
        loss.backward()
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise InputError(
            "pipeline: keeps what its network computed in one step for the next ones (a cache of"
            f" keys and values, as Flux.2 Klein KV's); {caches or 'a pipeline without one'} needed"
        ) from error


def _check_start(sample: Tensor, noise: Tensor) -> None:
    same = sample.shape == noise.shape and torch.allclose(
        sample.float(), noise, rtol=2**-7, atol=1e-3
    )
    if not same:
        raise InputError(
            f"pipeline: starts from other noise than the teacher did (shape {tuple(sample.shape)},"
            f" the teacher's {tuple(noise.shape)}); the same seeds, and a call that differs by"
            " guidance alone, needed"
        )
