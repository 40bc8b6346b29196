"""``boss sample``: images from a network and a schedule, as one picture."""

import math
import sys
from pathlib import Path

import torch

from boss_core.checkpoints.folder import Network
from boss_core.checkpoints.load import Teacher
from boss_core.checkpoints.student import network_hash
from boss_core.errors import InputError
from boss_core.evaluation.sampling import sample_images
from boss_core.io.files import replacing
from boss_core.ode.noise import sample_labels, sample_noise
from boss_core.ode.schedule import Schedule, from_sigmas
from boss_core.ode.velocity import check_repeats, with_labels
from flows.progress import progress
from flows.report.image_grid import image_grid
from flows.search.export import read_schedule
from flows.search.memory import free_bytes
from flows.search.options import parse_sigmas


def sample_grid(
    teacher: Teacher,
    steps: Schedule,
    out: Path,
    *,
    number: int,
    label: int | None,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> None:
    """Sample ``number`` images on these steps and write them to ``out``."""
    if len(teacher.shape) != 3 or teacher.shape[0] not in (1, 3):
        raise InputError(f"shape: {teacher.shape}; images of 1 or 3 channels needed for a picture")
    taken = number * math.prod(teacher.shape) * (2 + max(1, 32 // teacher.shape[2]) ** 2)
    if taken > (free := free_bytes(torch.device("cpu"))):
        raise InputError(
            f"-n: {number:,} images take {taken / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are"
            " free; fewer needed"
        )
    labels = None
    if teacher.classes is None and label is not None:
        raise InputError(f"--label: {label}, but the network is not conditional")
    if teacher.classes is not None:
        labels = sample_labels(
            range(number), teacher.classes, seed, frequencies=teacher.frequencies
        )
        if label is not None:
            if not 0 <= label < teacher.classes:
                raise InputError(f"--label: {label}; 0..{teacher.classes - 1} needed")
            labels = torch.full_like(labels, label)
    if isinstance(teacher.velocity, torch.nn.Module):
        teacher.velocity.to(device)
    if not isinstance(teacher.velocity, Network):
        first = sample_noise(range(min(number, batch_size)), teacher.shape, seed)
        of_first = None if labels is None else labels[: len(first)].to(device)
        check_repeats(with_labels(teacher.velocity, of_first), first.to(device))
    with progress("sample", number, "images") as advance:
        images = sample_images(
            teacher.velocity,
            steps.timesteps,
            samples=number,
            shape=teacher.shape,
            seed=seed,
            batch_size=batch_size,
            device=device,
            solver=steps.solver,
            weights=steps.weights,
            labels=labels,
            on_step=advance,
        )
    with replacing(out) as temporary:
        image_grid(images, columns=math.ceil(math.sqrt(number))).save(temporary, format="PNG")
    print(
        f"{out}: {_counted(number, 'image')}, {_counted(steps.nfe, 'network evaluation')}"
        f"{' each' if number > 1 else ''}"
    )


def _counted(number: float, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def choose_schedule(teacher: Teacher, path: Path | None, sigmas: str | None = None) -> Schedule:
    """The schedule to sample with, from a file, noise levels or a student; a warning where it was
    found for another network, or a student was trained for other steps."""
    if sigmas is not None:
        if path is not None:
            raise InputError("--sigmas: with --schedule; one of them needed")
        steps = from_sigmas(parse_sigmas("--sigmas", sigmas), "--sigmas")
        _warn_of_other_steps(teacher, steps, "--sigmas")
        return steps
    if path is None:
        if teacher.schedule is None:
            raise InputError("--schedule: missing; only a student brings its own steps")
        return teacher.schedule
    schedule = read_schedule(path)
    if schedule.teacher_hash is not None and not _is_of(teacher, schedule.teacher_hash):
        print(
            f"warning: {path}: found for the network {schedule.teacher_hash[:12]}, but this one is"
            f" {str(teacher.hash)[:12]}: its steps need not be the best here",
            file=sys.stderr,
        )
    _warn_of_other_steps(teacher, schedule, str(path))
    return schedule


def _is_of(teacher: Teacher, found_for: str) -> bool:
    """Whether steps were found for this network, or for the one that it is a student of."""
    if found_for in {teacher.hash, teacher.schedule.teacher_hash if teacher.schedule else None}:
        return True
    velocity = teacher.velocity  # `boss straighten` knows a network by its weights alone
    return isinstance(velocity, torch.nn.Module) and network_hash(velocity) == found_for


def _warn_of_other_steps(teacher: Teacher, steps: Schedule, source: str) -> None:
    own = teacher.schedule
    if own is None or (own.timesteps, own.solver, own.weights) == (
        steps.timesteps,
        steps.solver,
        steps.weights,
    ):
        return
    kind = "other steps of" if own.steps == steps.steps else f"{steps.steps} steps of"
    print(
        f"warning: {source}: {kind} {steps.solver}, but this student was trained for its own"
        f" {own.steps} of {own.solver}, which it takes without --schedule and --sigmas",
        file=sys.stderr,
    )
