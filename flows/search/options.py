"""What the options of ``boss schedule`` and ``boss sample`` name: a teacher, a device, a place."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from boss_core.checkpoints.load import Teacher, import_network, import_velocity, load_teacher
from boss_core.checkpoints.student import WEIGHTS, CalledNetwork, load_student, network_hash
from boss_core.errors import InputError


def choose_teacher(
    checkpoint: Path | None,
    config: str | None,
    raw_weights: bool,
    velocity: str | None,
    shape: str | None,
) -> Teacher:
    """The teacher that is named by a checkpoint or as a callable, never by both."""
    if (checkpoint is None) == (velocity is None):
        raise InputError("--checkpoint or --velocity needed, and one of them only")
    if checkpoint is not None:
        if (checkpoint / WEIGHTS).is_file():
            raise InputError(
                f"--checkpoint: {checkpoint} is a student of `boss straighten --network`, whose"
                " class is in your code; `boss sample --network MODULE:NAME` needed beside it"
            )
        teacher = load_teacher(checkpoint, config, use_ema=not raw_weights)
        if shape is not None and parse_shape(shape) != teacher.shape:
            own = "x".join(map(str, teacher.shape))
            raise InputError(
                f"--shape: {shape}, but {checkpoint} is for {own}; that, or none, needed"
            )
        return teacher
    refuse_options("--checkpoint", {"--config": config, "--raw-weights": raw_weights})
    assert velocity is not None
    if shape is None:
        raise InputError("--shape: missing; the shape of a sample, as 3x32x32, needed")
    return import_velocity(velocity, parse_shape(shape))


def choose_student(
    network: str, folder: Path | None, shape: str | None, classes: int | None
) -> Teacher:
    """A network of the user's own, as `boss straighten --network` takes it: with the weights and
    the steps of the student in a folder, or itself where there is none."""
    if shape is None:
        raise InputError("--shape: missing; the shape of a sample, as 3x32x32, needed")
    of_sample, made = parse_shape(shape), import_network(network)
    if folder is None:
        own = CalledNetwork(made.network, made.velocity).eval().requires_grad_(False)
        return Teacher(own, of_sample, network_hash(made.network), classes)
    student = load_student(folder, made.network, made.velocity)
    hashed = network_hash(student.network)
    return Teacher(student.velocity, of_sample, hashed, classes, schedule=student.schedule)


def refuse_options(of: str, given: Mapping[str, object]) -> None:
    """InputError for the first option that was given, where all are of another kind of network:
    it would be left out without a word."""
    for option, value in given.items():
        if value is not None and value is not False and value != []:
            raise InputError(f"{option}: only goes with {of}; add that, or leave {option} out")


def parse_shape(text: str, length: int | None = None) -> tuple[int, ...]:
    """``3x32x32`` as a shape; ``length``: how many numbers there must be, where it matters."""
    parts = text.lower().split("x")
    # Of more digits than any size has: Python itself reads no more than 4300.
    right = all(part.isdecimal() and len(part) < 20 and int(part) > 0 for part in parts)
    if not right or length not in (None, len(parts)):
        option, example = ("--shape", "3x32x32") if length is None else ("--size", "512x512")
        raise InputError(
            f"{option}: {text!r:.80}; positive numbers joined by x, as {example}, needed"
        )
    return tuple(int(part) for part in parts)


def parse_sigmas(option: str, text: str) -> list[float]:
    """Noise levels from text: numbers with commas or spaces between them."""
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"{option}: {text!r:.80}; numbers as 1,0.65,0.3,0 needed") from error


def choose_device(name: str, *, float64: bool = False) -> torch.device:
    """``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``, and that there is one.
    float64: what is to be done there needs it, which mps does not have."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise InputError(f"--device: {name!r}; auto, cpu, cuda, cuda:1 (the second) or mps needed")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device: mps, but torch finds none; auto or cpu needed")
    if name == "mps" and float64:
        raise InputError("--device: mps has no float64, in which costs are summed; cpu needed")
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(name.partition(":")[2] or 0)
        if not count:
            raise InputError(f"--device: {name}, but torch finds no GPU; auto or cpu needed")
        if index >= count:
            raise InputError(f"--device: {name}; one of cuda:0 to cuda:{count - 1} needed")
    return torch.device(name)


def check_place(option: str, path: Path, *, folder: bool) -> None:
    """InputError, before any work, where what an option names cannot be written: a file for a
    folder, a folder for a file, or a place that is read-only."""
    if path.exists() and path.is_dir() != folder:
        kinds = ("a file", "a folder")
        raise InputError(f"{option}: {path} is {kinds[not folder]}; {kinds[folder]} needed")
    place = next(
        p for p in (path if folder else path.parent, *path.absolute().parents) if p.exists()
    )
    if not place.is_dir():
        raise InputError(f"{option}: {path}: {place} is a file; a folder needed")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{option}: {path}: {place} cannot be written to; another place needed")


def check_png(option: str, path: Path) -> None:
    """InputError for a name that says another kind of picture than the PNG that is written."""
    from PIL import Image

    kind = Image.registered_extensions().get(path.suffix.lower(), "PNG")
    if kind != "PNG":
        raise InputError(f"{option}: {path}: a PNG is written; a name ending in .png needed")
