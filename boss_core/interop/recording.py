"""What a diffusers pipeline does on a grid, watched from where its scheduler is.

A `Walk` is the record of one call after the other: the velocities that the scheduler was handed,
the states, and the evaluations of networks between the steps. diffusers is imported where it is
used only: the rest of the library works without it.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boss_core.errors import InputError
from boss_core.interop.diffusers_schedulers import refuse_changes, without_traceback
from boss_core.ode.timesteps import Times

# A tensor that a network is given is the state, or the state with a part replaced, when at least
# this share of its elements is equal to it: chance makes 1 in 100 equal in bfloat16.
_SHOWN = 0.1


# What diffusers calls the network; a second transformer takes the low noise levels of Wan 2.2.
DENOISERS = ("transformer", "transformer_2", "unet")


@dataclass(eq=False)
class Track:
    """The steps of one scheduler in a call: that of the pipeline, or a copy of it."""

    steps: int = 0
    again: bool = False  # set_timesteps was called after steps were taken
    state: Tensor | None = None
    place: int = 0  # among those that step


@dataclass
class Point:
    """What the pipeline did at one point of the grid, to compare another walk with.

    states, velocities: of each track. evaluations: of one sample. told: the small numeric
    arguments of the networks, by their names.
    """

    states: list[Tensor] = field(default_factory=list)
    velocities: list[Tensor] = field(default_factory=list)
    evaluations: float = 0.0
    told: dict[str, tuple[Any, ...]] = field(default_factory=dict)


class Walk:
    """Euler steps of a pipeline on a grid, and the velocities that they are made of.

    States are carried in float32, and rounded to the pipeline's dtype where it sees them.

    times: n + 1 times from 0 to 1. networks: those to watch, by name. keep: the grid points of
    which a `Point` is kept in the first call. follow: points of another walk, at all of these
    times: its states are handed to the pipeline in place of those that its velocities lead to.
    on_step: called after each step with the number of samples in it. on_memory: called with the
    bytes of velocities about to be held, before they are; None for both keeps quiet.
    """

    def __init__(
        self,
        times: Times,
        networks: Mapping[str, torch.nn.Module],
        *,
        keep: Sequence[int] = (),
        follow: Sequence[Point] | None = None,
        on_step: Callable[[int], None] | None = None,
        on_memory: Callable[[int], None] | None = None,
    ) -> None:
        self.times, self.networks = times, networks
        self.keep, self.follow = frozenset(keep), follow
        self.on_step, self.on_memory = on_step, on_memory
        self.count = len(times) - 1
        self.held: list[Tensor] = []
        self.points: dict[int, Point] = {}
        self.inverted = False  # noise levels are t in place of 1 - t (Mochi)
        self.calls = 0
        self.discarded = 0.0  # the share of the states that the networks never see
        self.begin()

    def begin(self) -> None:
        """To be called before each call of the pipeline."""
        self.tracks: list[Track] = []
        self.stepping: list[Track] = []
        self.steps = self.samples = 0
        self.evaluations: list[Counter[str]] = []
        self.pending: Counter[str] = Counter()
        self.shown: list[Tensor] | None = []  # what networks are given before the first step
        self.seen: Tensor | None = None
        self.told: dict[str, tuple[Any, ...]] = {}

    def hooks(self) -> list[Any]:
        """Start to watch the networks; each handle is to be removed."""
        return [
            network.register_forward_hook(self._watch(name), with_kwargs=True)
            for name, network in self.networks.items()
        ]

    def _watch(self, name: str) -> Callable[..., None]:
        def evaluated(_: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            self.pending[name] += count_samples(args, kwargs, output)
            given = [*args, *kwargs.values()]
            if self.shown is not None:
                self.shown += [value for value in given if isinstance(value, Tensor)]
            if self._keeps(self.steps):
                for argument, value in kwargs.items():
                    if numbers := _numbers(value):
                        key = f"{name}.{argument}"
                        self.told[key] = self.told.get(key, ()) + numbers

        return evaluated

    def _keeps(self, k: int) -> bool:
        return self.calls == 0 and k in self.keep

    def take(self, track: Track, velocity: Tensor, sample: Tensor) -> Tensor:
        """One step: the next state, in the dtype of the sample."""
        k = track.steps
        self._check(track, velocity, sample)
        if k == 0:
            track.place = len(self.stepping)
            self.stepping.append(track)
            track.state, self.samples = sample.float(), len(sample)
        assert track.state is not None
        if k:
            refuse_changes(sample, track.state, k)
        first = k == self.steps  # of the tracks that take this step
        if first:
            self.steps += 1
            self.evaluations.append(self.pending)
            self.pending = Counter()
            if k == 0:
                self._note_shown(sample)
            if self._keeps(k):
                self.points[k] = Point(told=self.told)
            self.told = {}
        held = self._hold(track, k, velocity)
        if self._keeps(k):
            self.points[k].states.append(sample.clone())
            self.points[k].velocities.append(velocity.to(held.dtype, copy=True))
        track.steps += 1
        if self.follow is None:
            delta = (1.0 - self.times[k + 1]) - (1.0 - self.times[k])
            if self.inverted:
                delta = self.times[k + 1] - self.times[k]
            track.state = track.state + delta * velocity.float()
        elif k + 1 < self.count:
            track.state = self.follow[k + 1].states[track.place].float()
        if first and self.on_step is not None:
            self.on_step(len(sample))
        return track.state.to(sample.dtype, copy=True)  # a network may work in place

    def _check(self, track: Track, velocity: Tensor, sample: Tensor) -> None:
        k = track.steps
        others = [other.steps for other in self.stepping if other is not track]
        if track.again or (k == 0 and self.count in others):
            raise InputError(
                "pipeline: takes its steps in several sections, each from noise of its own; a call"
                " of one section (fewer frames) needed"
            )
        if velocity.shape != sample.shape:
            raise InputError(
                f"pipeline: velocity of shape {tuple(velocity.shape)} for states of shape"
                f" {tuple(sample.shape)}; the same shape needed"
            )
        if track.state is not None and track.state.shape != sample.shape:
            raise InputError(
                f"pipeline: changes the shape of its states at step {k}, from"
                f" {tuple(track.state.shape)} to {tuple(sample.shape)}; one shape needed"
            )
        if k >= self.count:
            raise InputError(f"pipeline: takes more than the {self.count} steps of the grid")
        if others and (max(others) > k + 1 or min(others) < k):
            raise InputError(
                "pipeline: steps copies of its scheduler apart from each other, so that parts of"
                " its states have noise levels of their own; one for all needed"
            )

    def _note_shown(self, sample: Tensor) -> None:
        """Which elements of the first state the network was given: pipelines that put an image
        in the place of a frame (Wan 2.2 5B) step that frame as all others, and discard it."""
        shown, self.shown = self.shown or [], None
        for given in shown:
            fits = given.shape[1:] == sample.shape[1:] and len(given) >= len(sample)
            if not fits or given.device != sample.device:
                continue
            equal = given[: len(sample)] == sample.to(given.dtype)
            if equal.float().mean() >= _SHOWN:
                self.seen = equal if self.seen is None else self.seen | equal
        if self.seen is not None and self.seen.all():
            self.seen = None
        elif self.seen is not None:
            self.discarded = 1.0 - float(self.seen.float().mean())

    def _hold(self, track: Track, k: int, velocity: Tensor) -> Tensor:
        samples = len(velocity)
        shape = (self.count, samples, velocity[0].numel())
        held = self.held[track.place] if track.place < len(self.held) else None
        if held is None or held.shape[1] < samples or held.shape[2] != shape[2]:
            if self.on_memory is not None:
                self.on_memory(math.prod(shape) * velocity.dtype.itemsize)
            self.held[track.place : track.place + 1] = [
                torch.empty(shape, dtype=velocity.dtype, device=velocity.device)
            ]
            held = self.held[track.place]
        held[k, :samples] = velocity.flatten(1)
        if self.seen is not None and track.place == 0:
            held[k, :samples] *= self.seen.flatten(1)
        return held

    def end(self) -> tuple[Tensor, NDArray[np.float64]]:
        """To be called after each call: its velocities, (n, B, elements), those of all schedulers
        side by side; and what `finish` returns."""
        evaluations = self.finish()
        found = [self.held[track.place][:, : self.samples] for track in self.stepping]
        return (found[0] if len(found) == 1 else torch.cat(found, dim=2)), evaluations

    def finish(self) -> NDArray[np.float64]:
        """The evaluations of networks for one sample in each step of the call, (n,).

        InputError when the pipeline did not take every step of the grid."""
        taken = [track.steps for track in self.stepping] or [0]
        if any(steps != self.count for steps in taken):
            raise InputError(
                f"pipeline: took {min(taken)} of the {self.count} steps of the grid;"
                " one that starts from noise and asks its scheduler for every step needed"
            )
        evaluations = self._evaluations()
        for k, point in self.points.items() if self.calls == 0 else ():
            point.evaluations = evaluations[k]
        self.calls += 1
        return evaluations

    def _evaluations(self) -> NDArray[np.float64]:
        return np.array([sum(counted.values()) for counted in self.of_steps()]) / self.samples

    def of_steps(self) -> list[Counter[str]]:
        """How many samples each network was evaluated for in each step. What is evaluated before
        the first step and never again prepares the conditions, and is left out."""
        later = Counter[str]()
        for counted in self.evaluations[1:]:
            later += counted
        once = set(self.evaluations[0]) - set(later) - set(DENOISERS)
        return [
            Counter({name: n for name, n in counted.items() if k or name not in once})
            for k, counted in enumerate(self.evaluations)
        ]


def count_samples(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    """The number of samples in an evaluation: of its first argument, else of its output."""
    given = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
    if isinstance(given, list) or (isinstance(given, Tensor) and given.dim()):
        return len(given)
    # A tensor, or a tuple or a diffusers output whose first entry holds the samples.
    return len(output if isinstance(output, Tensor) else output[0])


def _numbers(value: Any) -> tuple[Any, ...]:
    """The numbers of an argument that is a few of them, as the time of each sample."""
    if isinstance(value, bool | int | float):
        return (value,)
    if isinstance(value, list) and all(isinstance(each, int) for each in value):
        return tuple(value)
    if isinstance(value, Tensor) and value.dim() < 2 and value.numel() <= 1024:
        return tuple(value.detach().flatten().tolist())
    return ()


class Walker(Protocol):
    """Whatever decides the steps of a pipeline from the place of its scheduler."""

    times: Times
    tracks: list[Track]
    inverted: bool

    def take(self, track: Track, velocity: Tensor, sample: Tensor) -> Tensor: ...


def recording_scheduler(scheduler: Any, walk: Walker) -> Any:
    """A scheduler in the place of a pipeline's own that takes the steps of a walk, whatever it is
    asked for. Copies that the pipeline makes of it take part in the same walk."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteSchedulerOutput,
    )

    from boss_core.interop.fixed_flow_scheduler import FixedFlowScheduler

    class RecordingEulerScheduler(FixedFlowScheduler):
        """Euler steps in float32, and the velocities that they were made of."""

        track: Track

        def __deepcopy__(self, memo: Any) -> Any:
            twin = copy.copy(self)
            twin.track = Track()
            walk.tracks.append(twin.track)
            return twin

        # Pipelines look for the names of the arguments to learn what the scheduler accepts.
        def set_timesteps(
            self,
            num_inference_steps: int | None = None,
            device: Any = None,
            sigmas: Any = None,
            mu: float | None = None,
            timesteps: Any = None,
        ) -> None:
            if self.track not in walk.tracks:  # the first of this call
                self.track = Track()
                walk.tracks.append(self.track)
            self.track.again = self.track.steps > 0
            walk.inverted = bool(self.config.invert_sigmas)
            with without_traceback():
                super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)

        def step(
            self,
            model_output: Tensor,
            timestep: Any,
            sample: Tensor,
            return_dict: bool = True,
            **kwargs: Any,
        ) -> Any:
            if kwargs.get("per_token_timesteps") is not None:
                raise InputError(
                    "pipeline: gives each token a noise level of its own; one for all needed"
                )
            state = walk.take(self.track, model_output, sample)
            self._step_index = self.track.steps
            return FlowMatchEulerDiscreteSchedulerOutput(state) if return_dict else (state,)

    recorder = RecordingEulerScheduler.like(scheduler, 1.0 - walk.times)
    recorder.track = Track()
    return recorder
