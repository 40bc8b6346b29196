"""The perceptual cost of every possible Euler step: LPIPS (Zhang et al. 2018, The Unreasonable
Effectiveness of Deep Features as a Perceptual Metric) in place of eq. 5's squared error.

    c_ij = mean over samples of LPIPS(x_j, x_i + (t_j - t_i) v_i),   i < j,

on Euler's fine path. It does not follow from a Gram matrix: every pair of grid points has an image
of its own. LPIPS is torch-fidelity's, with weights that the user supplies.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch_fidelity.sample_similarity_lpips import URL_VGG16_LPIPS, SampleSimilarityLPIPS
from torchvision.models import VGG16_Weights

from boss_core.errors import InputError
from boss_core.io.tensor_files import read_tensors
from boss_core.ode.batches import batches
from boss_core.ode.solvers import euler
from boss_core.ode.timesteps import Times, validate_timesteps
from boss_core.ode.velocity import Velocity, VelocityField

# What torch-fidelity would download: here the files have to be in the user's folder.
URLS = (URL_VGG16_LPIPS, VGG16_Weights.IMAGENET1K_V1.url)
# The network halves an image four times; smaller ones are enlarged to this.
SMALLEST_SIDE = 16

# From images (B, C, H, W) in [-1, 1], with 1 or 3 channels, and as many others or one for all, to
# their distances (B,).
Distance = Callable[[Tensor, Tensor], Tensor]


def weights_files(folder: Path) -> list[Path]:
    """The two weights files of LPIPS; InputError says where one that is missing is published."""
    found = []
    for url in URLS:
        path = folder / url.rsplit("/", 1)[1]
        if not path.is_file():
            raise InputError(f"{path}: no such file; that of {url} needed for the objective lpips")
        found.append(path)
    return found


def load_lpips(folder: Path, device: torch.device | str = "cpu") -> Distance:
    """torch-fidelity's LPIPS (of VGG16), on the device; it downloads nothing.

    folder: with the two files of `weights_files`, by the names they are published under.

    Images whose sides are below `SMALLEST_SIDE` are enlarged to squares of it. Raises InputError
    naming the file that is missing or is not weights of LPIPS.
    """
    files = weights_files(folder)
    tensors = [read_tensors(path, "the published weights") for path in files]
    # LPIPS ends before the classifier of VGG16, which is most of its file: zeros, stored as one.
    tensors[1] = {
        name: tensor.new_zeros(1).expand_as(tensor) if name.startswith("classifier.") else tensor
        for name, tensor in tensors[1].items()
    }
    hub = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as temporary:
        # The library unpickles what is in torch's cache: that must be our own copy of the
        # tensors, in a cache of our own, so that no foreign pickle is executed.
        cache = Path(temporary) / "checkpoints"
        cache.mkdir()
        for path, content in zip(files, tensors, strict=True):
            torch.save(content, cache / path.name)
        torch.hub.set_dir(temporary)
        try:
            network = SampleSimilarityLPIPS("lpips")
        except (RuntimeError, TypeError, AttributeError) as error:
            message = " ".join(str(error).split())[:200]
            raise InputError(
                f"{folder}: not the weights of LPIPS ({message}); the files of"
                f" {' and '.join(URLS)} needed"
            ) from error
        finally:
            torch.hub.set_dir(hub)
    network.to(device)

    def distance(images: Tensor, others: Tensor) -> Tensor:
        small = min(images.shape[-2:]) < SMALLEST_SIDE
        network.sample_similarity_resize = SMALLEST_SIDE if small else None
        return network(_pixels(images), _pixels(others))

    return distance


def lpips_distances(steps: int, samples: int) -> int:
    """How many distances `estimate_lpips_costs` takes."""
    return samples * steps * (steps - 1) // 2


@torch.no_grad()
def estimate_lpips_costs(
    velocity: Velocity,
    noise: Tensor,
    timesteps: ArrayLike,
    distance: Distance,
    *,
    batch_size: int,
    labels: Tensor | None = None,
    on_distances: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Roll out Euler trajectories and return the perceptual cost of every Euler step of their
    grid: (n+1, n+1) float64, entry (i, j) for i < j, else 0. For `boss_core.bellman.recursion`.

    velocity: evaluated n times a sample.
    noise: (N, C, H, W) start states, of 1 or 3 channels, on the device to compute on.
    timesteps: n + 1 increasing times from 0 to 1.
    distance: that of `load_lpips`, called for n (n - 1) / 2 images a sample: one grid step is
        the path itself and costs 0.
    batch_size: trajectories rolled out together, and images in one call of the distance.
    labels: (N,) int64 on the device of the noise, when the velocity is conditional.
    on_distances: called after each call of the distance with the number of images in it.

    States before t = 1 are noisy and go beyond [-1, 1]; they are compared as they are. Raises
    InputError when states are not images of 1 or 3 channels, there is no noise, there is not one
    label a sample, or the velocity or a distance is not finite.
    """
    times = validate_timesteps(timesteps)
    n = len(times) - 1
    if noise.ndim != 4 or noise.shape[1] not in (1, 3):
        raise InputError(
            f"noise: shape {tuple(noise.shape)}; images, (N, 1 or 3, H, W), needed for the"
            " objective lpips"
        )
    total = torch.zeros(n + 1, n + 1, dtype=torch.float64, device=noise.device)
    lengths = torch.from_numpy(times[None, :] - times[:, None]).to(noise)[..., None, None, None]
    for _, start, of_batch in batches(velocity, noise, labels, batch_size):
        states, velocities = _roll_out(of_batch, start, times)
        for x, v in zip(states.unbind(1), velocities.unbind(1), strict=True):
            for j in range(2, n + 1):
                jumps = x[: j - 1] + lengths[: j - 1, j] * v[: j - 1]
                for part in torch.arange(j - 1, device=x.device).split(batch_size):
                    total[part, j] += distance(jumps[part], x[j, None]).double()
                    if on_distances is not None:
                        on_distances(len(part))
    cost = (total / len(noise)).cpu().numpy()
    if not np.isfinite(cost).all():
        raise InputError(
            "velocity: not finite on the trajectories, or LPIPS of them is not; a network with"
            " finite outputs needed"
        )
    return cost


def _roll_out(velocity: VelocityField, x: Tensor, times: Times) -> tuple[Tensor, Tensor]:
    """States (n+1, B, ...) and velocities (n, B, ...) of the fine path."""
    states, velocities = [], []

    def keep(_: int, state: Tensor, v: Tensor | None) -> None:
        states.append(state)
        if v is not None:
            velocities.append(v.clone())  # a network may return the same buffer each time

    euler(velocity, x, times, observer=keep)
    return torch.stack(states), torch.stack(velocities)


def _pixels(images: Tensor) -> Tensor:
    """[-1, 1] to the library's [0, 255], three channels."""
    return ((images + 1.0) * 127.5).expand(-1, 3, -1, -1)
