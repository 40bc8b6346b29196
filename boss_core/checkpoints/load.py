"""A network to search steps for or to sample from, whatever layout it comes in."""

import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from boss_core.checkpoints.code_hash import code_hash, is_users_file, source_files
from boss_core.checkpoints.folder import (
    Network,
    load_checkpoint,
    load_rectified_flow,
    read_label_counts,
    weights_file,
)
from boss_core.errors import InputError
from boss_core.ode.schedule import Schedule
from boss_core.ode.velocity import evaluate

_EVALUATE = evaluate.__code__.co_filename


@dataclass(frozen=True)
class Teacher:
    """A velocity and what is to be known of it.

    velocity: ``v(x, t)``, or ``v(x, t, labels)`` where there are classes.
    shape: of one sample.
    hash: the SHA-256 of the weights as this project stores them, wherever they came from; of a
        callable from Python code that of its source and weights, None where it has no source.
    classes: the number of labels of a conditional network, else None.
    frequencies: (classes,), how often each label comes; None where nothing says so.
    schedule: for a student, the steps it was straightened for.
    """

    velocity: Callable[..., Tensor]
    shape: tuple[int, ...]
    hash: str | None = None
    classes: int | None = None
    frequencies: tuple[float, ...] | None = None
    schedule: Schedule | None = None


def load_teacher(
    checkpoint: Path, config: Mapping[str, Any] | str | Path | None = None, *, use_ema: bool = True
) -> Teacher:
    """A checkpoint as a teacher, on the CPU.

    checkpoint: a folder in this project's layout (`load_checkpoint`), or a Rectified Flow
        file, ``.pth`` or ``.safetensors``, for which ``config`` is needed (`load_rectified_flow`).

    Raises InputError naming the file that is missing or wrong.
    """
    if checkpoint.is_dir():
        if config is not None or not use_ema:
            option = "config" if config is not None else "use_ema=False (--raw-weights)"
            raise InputError(
                f"{checkpoint}: a folder, whose card says all, with {option}; the folder alone, or"
                " the file that this is for, needed"
            )
        network, card = load_checkpoint(checkpoint)
        return Teacher(
            network,
            network.config.sample_shape,
            card.weights_sha256,
            network.config.classes,
            read_label_counts(checkpoint, network.config.classes),
            card.schedule,
        )
    if not checkpoint.is_file():
        raise InputError(
            f"{checkpoint}: no such file or folder; a folder with model.safetensors and card.json,"
            " or a Rectified Flow file (.pth, .safetensors), needed"
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

    name: ``package.module:attribute``. shape: of one sample.

    Its hash is that of its weights for a network of this project, else of its source too
    (`boss_core.checkpoints.code_hash`); None where it has no source.

    InputError when there is no such module or attribute, the module does not import, or what is
    there is no callable of two arguments.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(f"velocity: {name!r}; package.module:attribute needed")
    module, velocity = _imported(name, module_name, attribute)
    if not callable(velocity):
        raise InputError(f"velocity: {name!r} is a {type(velocity).__name__}; v(x, t) needed")
    if isinstance(velocity, type):
        raise InputError(
            f"velocity: {name!r} is a class; an instance of it, as net = {velocity.__name__}(...),"
            " needed"
        )
    if (takes := mismatch(velocity, 2)) is not None:
        raise InputError(f"velocity: {name!r} takes {takes}; (x, t) needed")
    if isinstance(velocity, nn.Module):
        with suppress(NotImplementedError):  # exported ones have one mode only
            velocity.eval()
        for parameter in velocity.parameters():  # scripted ones have no requires_grad_
            parameter.requires_grad_(False)
    if isinstance(velocity, Network):
        return Teacher(velocity, shape, weights_hash(velocity))
    return Teacher(velocity, shape, code_hash(velocity, module, attribute))


@dataclass(frozen=True)
class MadeNetwork:
    """What a function of the user's made: a network, and ``velocity(network, x, t)``, None where
    it is called so itself. source_hash: of the code, None where it has no file."""

    network: nn.Module
    velocity: Callable[..., Tensor] | None
    source_hash: str | None


def import_network(name: str) -> MadeNetwork:
    """A network from Python code on the import path or in the working directory.

    name: ``package.module:attribute``, of a function without arguments that returns a module, or a
        module and the way to call it; or of a module.

    InputError when there is no such code, it raises something, or returns something else.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(f"network: {name!r}; package.module:attribute needed")
    code, found = _imported(name, module_name, attribute, "network")
    if callable(found) and not isinstance(found, nn.Module):
        if (takes := mismatch(found, 0)) is not None:  # as a velocity does
            raise InputError(
                f"network: {name!r} takes {takes}; a function without arguments needed, which"
                " returns the torch.nn.Module, or it and velocity(network, x, t)"
            )
        try:
            found = found()
        except (InputError, OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:  # it may raise anything
            raise InputError(f"network: {name!r}: {_raised(error)}") from error
    network, velocity = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(network, nn.Module) or not (velocity is None or callable(velocity)):
        kinds = " and ".join(type(f).__name__ for f in (network, velocity) if f is not None)
        raise InputError(
            f"network: {name!r} gives {kinds or 'None'}; a torch.nn.Module, or one and"
            " velocity(network, x, t), needed"
        )
    files = source_files(code)
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return MadeNetwork(network, velocity, digest.hexdigest() if files else None)


def _imported(
    name: str, module_name: str, attribute: str, what: str = "velocity"
) -> tuple[ModuleType, Any]:
    """The module, and what is behind the attribute there. what: to be named in errors."""
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except InputError:
        raise
    except SystemExit as error:  # of argparse, for one
        raise InputError(
            f"{what}: {name!r}: {_where(error)}ends Python when it is imported; that guarded by"
            " if __name__ == '__main__' needed"
        ) from error
    except Exception as error:  # the user's module may raise anything
        raise InputError(f"{what}: {name!r}: {_raised(error)}") from error
    finally:
        sys.path.remove("")
    return module, found


@contextmanager
def calling(name: str | None) -> Iterator[None]:
    """What a callable of the user's raises when it is called, as an InputError of one line that
    says where. name: as for `import_velocity`; None where there is no such callable."""
    try:
        yield
    except (InputError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:  # it may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        called = any(f.name == "evaluate" and f.filename == _EVALUATE for f in frames)
        if name is None or not called:
            raise
        raise InputError(f"velocity: {name!r}: {_raised(error)}") from error


def _where(error: BaseException) -> str:
    """The line of the user's code that raised it, to put before what; none is empty."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if is_users_file(frame.filename)]
    return f"{users[-1].filename}:{users[-1].lineno}: " if users else ""


def _raised(error: BaseException) -> str:
    """What went wrong in the user's code, and where, in a line."""
    message, where = " ".join(str(error).split()), _where(error)
    plain = isinstance(error, ModuleNotFoundError | AttributeError) and not where
    if isinstance(error, SyntaxError):
        message, where = error.msg, f"{error.filename}:{error.lineno}: "
    kind = "" if plain else f"{type(error).__name__}: "
    return f"{where}{kind}{message or 'no message'}"


def mismatch(called: Callable[..., Any], arguments: int) -> inspect.Signature | None:
    """The signature of a callable that does not take so many arguments; None where it does, and
    where that cannot be known."""
    try:
        signature = inspect.signature(called)
    except (ValueError, TypeError):
        return None
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        return signature
    return None


def weights_hash(network: nn.Module) -> str:
    """The SHA-256 that `save_checkpoint` would write into the card of this network."""
    return hashlib.sha256(weights_file(network)).hexdigest()
