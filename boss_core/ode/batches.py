"""Many samples through a network, some at a time."""

from collections.abc import Iterator

from torch import Tensor

from boss_core.errors import InputError
from boss_core.ode.velocity import Velocity, VelocityField, check_labels, with_labels


def check_batches(noise: Tensor, labels: Tensor | None, batch_size: int) -> None:
    """InputError unless there is noise, one label a sample or none at all, and room for one."""
    if len(noise) < 1 or batch_size < 1:
        raise InputError(
            f"noise: {len(noise)} samples in batches of {batch_size}; at least 1 of each needed"
        )
    check_labels(labels, len(noise))


def batches(
    velocity: Velocity, noise: Tensor, labels: Tensor | None, batch_size: int
) -> Iterator[tuple[slice, Tensor, VelocityField]]:
    """The samples in order, ``batch_size`` at a time: their rows, their noise (B, ...), and the
    velocity bound to their labels.

    noise: (N, ...). labels: (N,) int64 on its device, or None. InputError as `check_batches`.
    """
    check_batches(noise, labels, batch_size)
    for start in range(0, len(noise), batch_size):
        rows = slice(start, min(start + batch_size, len(noise)))
        of_batch = with_labels(velocity, None if labels is None else labels[rows])
        yield rows, noise[rows], of_batch
