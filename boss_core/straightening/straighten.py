"""Straightening for any network: one rollout, and a student for each schedule (paper, eq. 9)."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from boss_core.checkpoints.lora import adapter_tensors, add_adapter, merge_adapter
from boss_core.checkpoints.student import Call, CalledNetwork, Student, network_hash
from boss_core.errors import InputError
from boss_core.ode.noise import TRAJECTORIES, NoiseSource
from boss_core.ode.schedule import Schedule
from boss_core.ode.velocity import VelocityField, check_finite, check_repeats, evaluate, with_labels
from boss_core.straightening.rollout import Rollout, roll_out
from boss_core.straightening.segments import Segments
from boss_core.training.loop import Row, train
from boss_core.training.resume import Checkpoints
from boss_core.training.settings import Precision, TrainingSettings, training_share

# How far a velocity at times of its own for each sample may be from that at one time for all.
_SAME = 0.01
# What a network needs no more of to be looked at.
_LOOKED_AT = 4


def usual_training(**change: Any) -> TrainingSettings:
    """How a network that nothing is known of is trained, but for what is given: fields of
    `boss_core.training.settings.TrainingSettings`."""
    iterations = change.get("iterations", 2000)
    usual = {
        "iterations": iterations, "batch_size": 64, "learning_rate": 3e-4,
        "learning_rate_schedule": "cosine", "warmup": min(100, iterations // 10),
        "gradient_clip": 1.0, "ema_decay": 0.99,
    }  # fmt: skip
    return TrainingSettings(**(usual | change))


@dataclass(frozen=True)
class StraightenSettings:
    """What `straighten` trains, on what, and how.

    training: of each student; see `usual_training`.
    rank: of a LoRA adapter (`boss_core.checkpoints.lora`); None for all weights that need
        gradients, or all where none does.
    trajectories: of the network, rolled out once; one in ten is for validation.
    grid: fine steps of each. rollout_batch: trajectories at a time.
    precision: bfloat16 for autocast in training.
    checkpoint_every: steps of a training between checkpoints, where there is a folder for them.
    """

    training: TrainingSettings = field(default_factory=usual_training)
    rank: int | None = None
    trajectories: int = 1000
    grid: int = 100
    rollout_batch: int = 100
    precision: Precision = "float32"
    checkpoint_every: int = 200


def straighten(
    network: nn.Module,
    schedules: Sequence[Schedule],
    source: NoiseSource,
    settings: StraightenSettings | None = None,
    *,
    velocity: Call | None = None,
    folder: Path | None = None,
) -> list[Student]:
    """Students of a network, one for each schedule, trained on its own trajectories: no data.

    network: any module; a copy of it is trained, on its device and in evaluation mode (without
        dropout, with the running statistics that it has), and it stays as it is.
    schedules: of Euler or another linear multistep method (`boss_core.ode.solver_table`).
    source: the shape of a sample, the seed, and the classes of a conditional network.
    settings: None for the usual ones.
    velocity: ``velocity(network, x, t)``, or ``velocity(network, x, t, labels)`` with classes: the
        velocity of the network that it is given, whatever times and signs that one has, as in
        ``lambda net, x, t: -net(1000 * (1 - t), x)``. None where it is ``network(x, t)`` itself.
        One that takes a single time for all samples of a batch is called once for each time.
    folder: for the trajectories, and for checkpoints from which a killed run goes on; None for
        neither. It stays, and is the caller's to remove once the students are saved.

    Raises InputError for a network whose velocity is random, not finite or of another shape, whose
    weights are not float32 or float64, and as `boss_core.straightening.rollout.roll_out` and
    `boss_core.training.loop.train` do.
    """
    settings = settings or StraightenSettings()
    called, source = teacher_velocity(network, source, velocity)
    teacher_hash = network_hash(network)
    with evaluating(network):
        rollout = roll_out(
            called, schedules, source, trajectories=settings.trajectories, grid=settings.grid,
            batch_size=settings.rollout_batch, teacher_hash=teacher_hash,
            folder=None if folder is None else folder / "trajectories",
        )  # fmt: skip
    students = []
    for number, schedule in enumerate(schedules):
        kept = None if folder is None else checkpoints(folder, rollout, number, settings, source)
        student = train_student(
            called, rollout, number, source, settings, teacher_hash=teacher_hash, checkpoints=kept
        )
        students.append(replace(student, schedule=schedule))  # with the indices that it came with
    return students


def teacher_velocity(
    network: nn.Module, source: NoiseSource, velocity: Call | None = None
) -> tuple[CalledNetwork, NoiseSource]:
    """The velocity of a network, called as it has to be, and the source on its device.

    A few evaluations at the first trajectories' noise; InputError as `straighten`."""
    weights = [p for p in network.parameters() if p.is_floating_point()]
    if not weights:
        raise InputError(f"network: {type(network).__name__} without weights; some needed")
    for name, weight in network.named_parameters():
        if weight.is_floating_point() and weight.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"network: {name} is {weight.dtype}; float32 needed (network.float(), and"
                ' precision="bfloat16" to compute in that)'
            )
    source = replace(source, device=weights[0].device)
    noise, labels = source.draw(range(_LOOKED_AT), TRAJECTORIES)
    with evaluating(network), torch.no_grad():
        of_network = with_labels(CalledNetwork(network, velocity), labels)
        middle = torch.full((len(noise),), 0.5, device=source.device)
        check_finite(evaluate(of_network, noise, middle), middle)
        check_repeats(of_network, noise)
        one_time = _takes_one_time(of_network, noise)
    return CalledNetwork(network, velocity, one_time=one_time), source


def _takes_one_time(velocity: VelocityField, x: Tensor) -> bool:
    """Whether a velocity can only be called with the same time for all samples: it says so, or
    takes that of the first."""
    times = torch.linspace(0.1, 0.9, len(x), device=x.device)
    try:
        together = evaluate(velocity, x, times)
    except InputError:  # of `boss_core.ode.velocity.scalar_time`
        return True
    alone = torch.stack([evaluate(velocity, x, t.expand(len(x)))[i] for i, t in enumerate(times)])
    return bool((together - alone).norm() > _SAME * alone.norm())


def train_student(
    called: CalledNetwork,
    rollout: Rollout,
    number: int,
    source: NoiseSource,
    settings: StraightenSettings,
    *,
    teacher_hash: str,
    checkpoints: Checkpoints | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Student:
    """The student of one of the schedules of a rollout.

    called: the network that was rolled out, of which a copy is trained. number: of the schedule in
    the rollout. source: as for the rollout. teacher_hash: of the network. checkpoints, on_step: as
    for `boss_core.training.loop.train`; the last checkpoint is for the caller to remove.
    """
    schedule, device = rollout.schedules[number], torch.device(source.device)
    segments = Segments.of(rollout.states, rollout.knots, schedule, rollout.labels, device=device)
    first = training_share(settings.trajectories, 0.1)
    size = settings.training.batch_size

    def validate(network: Any) -> Row:
        rows = range(first, settings.trajectories)
        return {"validation_loss": float(np.mean(segments.segment_losses(network, rows, size)))}

    student = copy.deepcopy(called)
    if settings.rank is not None:
        student.requires_grad_(False)
        add_adapter(student, settings.rank, seed=int(source.seed))
    elif not any(p.requires_grad for p in student.parameters()):
        for parameter in student.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    loss = segments.training_loss(seed=int(source.seed), trajectories=first, batch_size=size)
    with _layers_are_called():
        trained = train(
            student, loss, settings.training, precision=settings.precision, validate=validate,
            on_step=on_step, checkpoints=checkpoints,
        )  # fmt: skip
    adapter = {name: tensor.detach().clone() for name, tensor in adapter_tensors(trained.network)}
    if settings.rank is not None:
        merge_adapter(trained.network)
    return Student(
        trained.network, schedule, teacher_hash, settings.rank, adapter, list(trained.curve)
    )


def checkpoints(
    folder: Path,
    rollout: Rollout,
    number: int,
    settings: StraightenSettings,
    source: NoiseSource,
    say: Callable[[str], None] = lambda line: None,
) -> Checkpoints:
    """Those of the training of one student, in a folder of the rollout's."""
    schedule = rollout.schedules[number]
    run: dict[str, Any] = {"timesteps": schedule.timesteps, "solver": schedule.solver}
    if schedule.weights is not None:
        run["weights"] = schedule.weights
    run |= {"rank": settings.rank, "seed": int(source.seed)}
    data: list[NDArray] = [rollout.states]
    if rollout.labels is not None:
        data.append(rollout.labels)
    place = folder / f"training-{number}"
    return Checkpoints(place, settings.checkpoint_every, run, data, say)


def ends(
    velocity: Any, solve: Callable[[VelocityField, Tensor], Tensor], source: NoiseSource,
    rows: range, purpose: int, batch_size: int,
) -> Tensor:  # fmt: skip
    """(len(rows), *shape): where ``solve(velocity, noise)`` ends, from the source's noise and
    labels for a purpose (`boss_core.ode.noise`), on the CPU."""
    parts = []
    for start in range(rows.start, rows.stop, batch_size):
        noise, labels = source.draw(range(start, min(start + batch_size, rows.stop)), purpose)
        parts.append(solve(with_labels(velocity, labels), noise).cpu())
    return torch.cat(parts)


def distance(samples: Tensor, teacher: Tensor) -> float:
    """The mean over samples, (B, ...), of the squared L2 distance to those of the teacher from the
    same noise: in the unit of a schedule's predicted error."""
    return float((samples.double() - teacher.double()).square().flatten(1).sum(dim=1).mean())


@contextmanager
def _layers_are_called() -> Iterator[None]:
    """Without torch's fast path of its Transformer layers in evaluation, which takes the weights of
    the layers inside, and with them no adapter that is beside them."""
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, all layers are in evaluation mode; after it, each as it was."""
    before = {layer: layer.training for layer in network.modules()}
    try:
        network.eval()
        yield
    finally:
        for layer, training in before.items():
            layer.training = training
