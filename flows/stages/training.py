"""What the stages that train have beside a loss: progress and checkpoints, of the main process."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray

from boss_core.errors import InputError
from boss_core.training.distributed import gathered
from boss_core.training.resume import Checkpoints
from flows import paths
from flows.config import Params
from flows.progress import progress
from flows.stages.runner import is_main


@contextmanager
def training_progress(label: str, iterations: int) -> Iterator[Callable[[int], None] | None]:
    """As `progress`, of the steps of a training, in the main process alone."""
    if not is_main():
        yield None
        return
    with progress(label, iterations, "steps") as advance:
        yield advance


def checkpoints(
    params: Params, label: str, run: dict[str, Any], data: Sequence[NDArray]
) -> Checkpoints:
    """Those of one training of a stage: see `boss_core.training.resume.Checkpoints`. InputError
    where it is of several machines that do not train the same."""
    found = Checkpoints(
        paths.training(label), params.compute.checkpoint_every, run | {"seed": params.seed}, data
    )
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:  # of torchrun, which accelerate starts
        _check_same(params, label, found)
    return found


def _check_same(params: Params, label: str, found: Checkpoints) -> None:
    """InputError unless all machines have the same parameters, data and PyTorch: each reads its own
    files, and a share of other data would spoil the network without a word."""
    own = ""
    if os.environ["LOCAL_RANK"] == "0":
        own = found.fingerprint({"torch": torch.__version__, **params.model_dump(mode="json")}, {})
    of_machines = [each for each in gathered(own) if each]  # in the order of their ranks
    others = [str(node) for node, each in enumerate(of_machines) if each != of_machines[0]]
    if others:
        raise InputError(
            f"{label}: machine {', '.join(others)} has not the parameters, the data and the torch"
            " of machine 0; the same needed on each, as `dvc repro --pull` brings them"
        )
