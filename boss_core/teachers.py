"""A network to search steps for or to sample from, whatever layout it comes in."""

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from boss_core.checkpoints import load_checkpoint, load_rectified_flow
from boss_core.errors import InputError
from boss_core.schedules import Schedule


@dataclass(frozen=True)
class Teacher:
    """A velocity and what is to be known of it.

    velocity: ``v(x, t)``, or ``v(x, t, labels)`` where there are classes.
    shape: of one sample.
    hash: the SHA-256 of the weights as this project stores them, wherever they came from; None
        for a callable without weights.
    classes: the number of labels of a conditional network, else None.
    schedule: for a student, the steps it was straightened for.
    """

    velocity: Callable[..., Tensor]
    shape: tuple[int, ...]
    hash: str | None = None
    classes: int | None = None
    schedule: Schedule | None = None


def load_teacher(
    checkpoint: Path, config: Mapping[str, Any] | str | Path | None = None, *, use_ema: bool = True
) -> Teacher:
    """A checkpoint as a teacher, on the CPU.

    checkpoint: a folder in this project's layout (`load_checkpoint`), or a Rectified Flow
        ``.pth`` file, for which ``config`` is needed (`load_rectified_flow`).

    Raises InputError naming the file that is missing or wrong.
    """
    if checkpoint.is_dir():
        network, card = load_checkpoint(checkpoint)
        return Teacher(
            network,
            network.config.sample_shape,
            card.weights_sha256,
            getattr(network.config, "classes", None),
            card.schedule,
        )
    if not checkpoint.is_file():
        raise InputError(
            f"{checkpoint}: no such file or folder; a folder with model.safetensors and card.json,"
            " or a Rectified Flow .pth file needed"
        )
    if config is None:
        raise InputError(
            f"{checkpoint}: a file needs its configuration: a published name such as cifar10, or a"
            " JSON file"
        )
    flow = load_rectified_flow(checkpoint, config, use_ema=use_ema)
    return Teacher(flow, flow.config.sample_shape, weights_hash(flow))


def import_velocity(name: str, shape: tuple[int, ...]) -> Teacher:
    """A callable ``v(x, t)`` from Python code on the import path or in the working directory.

    name: ``package.module:attribute``. A module's weights are hashed. shape: of one sample.
    InputError when there is no such module or attribute, or it is not callable.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise InputError(f"velocity: {name!r}; package.module:attribute needed")
    sys.path.insert(0, "")
    try:
        velocity = importlib.import_module(module)
        for part in attribute.split("."):
            velocity = getattr(velocity, part)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and not module.startswith(error.name or ""):
            raise  # the user's module is there and lacks something itself
        raise InputError(f"velocity: {name!r}: {error}") from error
    finally:
        sys.path.remove("")
    if not callable(velocity):
        raise InputError(f"velocity: {name!r} is a {type(velocity).__name__}; v(x, t) needed")
    if isinstance(velocity, nn.Module):
        return Teacher(velocity.eval().requires_grad_(False), shape, weights_hash(velocity))
    return Teacher(velocity, shape)


def weights_hash(network: nn.Module) -> str:
    """The SHA-256 that `save_checkpoint` would write into the card of this network."""
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    return hashlib.sha256(save(tensors)).hexdigest()
