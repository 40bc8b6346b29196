"""What the options of ``boss schedule`` and ``boss sample`` name: a teacher and a device."""

from pathlib import Path

import torch

from boss_core.errors import InputError
from boss_core.teachers import Teacher, import_velocity, load_teacher


def choose_teacher(
    checkpoint: Path | None,
    config: str | None,
    raw_weights: bool,
    velocity: str | None,
    shape: str | None,
) -> Teacher:
    """The teacher that is named by a checkpoint or as a callable, never by both."""
    if (checkpoint is None) == (velocity is None):
        raise InputError("--checkpoint, --velocity or --pipeline needed, and one of them only")
    if checkpoint is not None:
        return load_teacher(checkpoint, config, use_ema=not raw_weights)
    assert velocity is not None
    if shape is None:
        raise InputError("--shape: missing; the shape of a sample, as 3x32x32, needed")
    return import_velocity(velocity, parse_shape(shape))


def parse_shape(text: str, length: int | None = None) -> tuple[int, ...]:
    """``3x32x32`` as a shape; ``length``: how many numbers there must be, where it matters."""
    parts = text.lower().split("x")
    right = all(part.isdecimal() and int(part) > 0 for part in parts)
    if not right or length not in (None, len(parts)):
        option, example = ("--shape", "3x32x32") if length is None else ("--size", "512x512")
        raise InputError(f"{option}: {text!r}; positive numbers joined by x, as {example}, needed")
    return tuple(int(part) for part in parts)


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda``, and that there is one."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device: {name!r}; auto, cpu or cuda needed")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: cuda, but torch finds no GPU; auto or cpu needed")
    return torch.device(name)
