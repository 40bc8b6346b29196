"""Images from a velocity and a schedule."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from boss_core.errors import InputError
from boss_core.io.pixels import to_uint8
from boss_core.ode.noise import sample_noise
from boss_core.ode.solvers import SOLVERS, multistep
from boss_core.ode.timesteps import validate_timesteps
from boss_core.ode.velocity import Velocity, check_labels, with_labels

# Threads that draw noise for a GPU: beside the launches one takes some 0.1 s for 1,000 images of
# CIFAR-10, as long as six passes of a small network. A CPU's cores have the network to run.
_DRAWING = 4
# Published lists of steps begin this near to noise, and their samplers start from noise all the
# same; the network is told the first time as it is.
NEARLY_NOISE = 0.02


# Its many arguments are what one call differs by from the next; all but the first few have names.
def sample_images(
    velocity: Velocity,
    timesteps: ArrayLike,
    *,
    samples: int,
    shape: tuple[int, ...],
    seed: int,
    batch_size: int,
    device: torch.device,
    solver: str = "euler",
    weights: Sequence[Sequence[float]] | None = None,
    labels: Tensor | None = None,
    on_step: Callable[[int], None] | None = None,
) -> NDArray[np.uint8]:
    """Images of a velocity at given timesteps, exactly ``samples`` of them: (samples, *shape)
    uint8.

    Image ``i`` starts from noise ``i`` of ``seed``, so variants of a schedule or a network are
    compared on the same noise. ``solver``: one of `boss_core.ode.solvers.SOLVERS`; ``weights``: of
    ``multistep``, as in `boss_core.ode.schedule.Schedule`. ``labels``: (samples,) int64, one for
    each image, when the velocity is conditional. ``on_step`` is called
    with the size of each batch when it is done. InputError when there is not one label for each
    image, for an unknown solver, for no samples, for samples that are not finite, and for
    timesteps that begin after `NEARLY_NOISE`."""
    _check(solver, samples, timesteps)
    check_labels(labels, samples)
    solve = SOLVERS[solver] if weights is None else partial(multistep, solver, weights=weights)
    on_cuda = device.type == "cuda"
    images = np.empty((samples, *shape), dtype=np.uint8)

    def keep(rows: range, done: tuple[Tensor, Tensor], copied: torch.cuda.Event | None) -> None:
        images[rows.start : rows.stop] = _pixels(rows, done, copied)
        if on_step is not None:
            on_step(len(rows))

    # The images of the batch before are kept once this one's work is under way, so that a GPU
    # never waits.
    before: tuple[range, tuple[Tensor, Tensor], torch.cuda.Event | None] | None = None
    for rows, noise in _noise_ahead(samples, batch_size, shape, seed, device):
        of_batch = None if labels is None else labels[rows.start : rows.stop].to(device)
        x = solve(with_labels(velocity, of_batch), noise, timesteps)
        # Waited for below on CUDA only: elsewhere (mps) memory would be read too early.
        pixels = to_uint8(x).to("cpu", non_blocking=on_cuda)
        finite = x.isfinite().all().to("cpu", non_blocking=on_cuda)
        copied = torch.cuda.current_stream(device).record_event() if on_cuda else None
        if before is not None:
            keep(*before)
        before = rows, (pixels, finite), copied
    if before is not None:
        keep(*before)
    return images


def _check(solver: str, samples: int, timesteps: ArrayLike) -> None:
    if solver not in SOLVERS:
        raise InputError(f"solver: {solver!r}; one of {', '.join(SOLVERS)} needed")
    if samples < 1:
        raise InputError(f"samples: {samples}; at least 1 needed")
    start = float(validate_timesteps(timesteps, from_noise=False)[0])
    if start > NEARLY_NOISE:
        raise InputError(
            f"timesteps: begin at {start:g}, noise level {1 - start:g}; steps from noise, 0, needed"
            " (image to image: a solver of boss_core.ode.solvers, from an image with noise)"
        )


def _noise_ahead(
    samples: int, batch_size: int, shape: tuple[int, ...], seed: int, device: torch.device
) -> Iterator[tuple[range, Tensor]]:
    """The noise of every batch on the device, with its rows; that of the next is drawn while the
    device works on this one."""
    batches = [
        range(start, min(start + batch_size, samples)) for start in range(0, samples, batch_size)
    ]
    on_cuda = device.type == "cuda"
    threads = _DRAWING if on_cuda else 1

    def draw(rows: range) -> list[Future[Tensor]]:
        size = -(-len(rows) // threads)
        return [
            pool.submit(sample_noise, rows[at : at + size], shape, seed)
            for at in range(0, len(rows), size)
        ]

    with ThreadPoolExecutor(threads) as pool:
        drawn = draw(batches[0])
        for rows, following in zip_longest(batches, batches[1:]):
            noise = torch.cat([part.result() for part in drawn])
            if following is not None:
                drawn = draw(following)
            yield rows, (noise.pin_memory() if on_cuda else noise).to(device, non_blocking=on_cuda)


def _pixels(
    rows: range, done: tuple[Tensor, Tensor], copied: torch.cuda.Event | None
) -> NDArray[np.uint8]:
    """The images of a batch, once they are copied; NaN has no pixel value: it would become any."""
    if copied is not None:
        copied.synchronize()
    pixels, finite = done
    if not finite:
        raise InputError(
            f"velocity: samples {rows.start} to {rows.stop - 1} are not finite at t = 1; a network"
            " with finite outputs needed"
        )
    return pixels.numpy()
