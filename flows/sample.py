"""``boss sample``: images from a network and a schedule, as one picture."""

import math
import sys
from pathlib import Path

import torch

from boss_core.errors import InputError
from boss_core.files import replacing
from boss_core.sampling import sample_images
from boss_core.schedules import Schedule
from boss_core.teachers import Teacher
from boss_core.velocity import sample_labels
from flows.exports import read_schedule
from flows.grids import image_grid
from flows.progress import progress


def sample_grid(
    teacher: Teacher,
    schedule: Path | None,
    out: Path,
    *,
    number: int,
    label: int | None,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> None:
    """Sample ``number`` images on the steps of a schedule and write them to ``out``."""
    steps = choose_schedule(teacher, schedule)
    if len(teacher.shape) != 3 or teacher.shape[0] not in (1, 3):
        raise InputError(f"shape: {teacher.shape}; images of 1 or 3 channels needed for a picture")
    labels = None
    if teacher.classes is None and label is not None:
        raise InputError(f"--label: {label}, but the network is not conditional")
    if teacher.classes is not None:
        labels = sample_labels(range(number), teacher.classes, seed)
        if label is not None:
            if not 0 <= label < teacher.classes:
                raise InputError(f"--label: {label}; 0..{teacher.classes - 1} needed")
            labels = torch.full_like(labels, label)
    if isinstance(teacher.velocity, torch.nn.Module):
        teacher.velocity.to(device)
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
            labels=labels,
            on_step=advance,
        )
    with replacing(out) as temporary:
        image_grid(images, columns=math.ceil(math.sqrt(number))).save(temporary, format="PNG")
    print(f"{out}: {number} images, {steps.nfe} network evaluations each")


def choose_schedule(teacher: Teacher, path: Path | None) -> Schedule:
    """The schedule to sample with; a warning where it was found for another network."""
    if path is None:
        if teacher.schedule is None:
            raise InputError("--schedule: missing; only a student brings its own steps")
        return teacher.schedule
    schedule = read_schedule(path)
    hashes = {teacher.hash, teacher.schedule.teacher_hash if teacher.schedule else None}
    if schedule.teacher_hash is not None and schedule.teacher_hash not in hashes:
        print(
            f"warning: {path}: found for the network {schedule.teacher_hash[:12]}, but this one is"
            f" {str(teacher.hash)[:12]}: its steps need not be the best here",
            file=sys.stderr,
        )
    return schedule
