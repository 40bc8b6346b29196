"""What the stages that train have beside a loss: progress and checkpoints, of the main process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

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
    """Those of one training of a stage: see `boss_core.training.resume.Checkpoints`."""
    return Checkpoints(
        paths.training(label), params.compute.checkpoint_every, run | {"seed": params.seed}, data
    )
