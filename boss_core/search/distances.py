"""Distances between samples and a reference, many candidates at once: what a search lowers.

Each function takes the reference, (M, ...), and returns a `Distance`, which keeps on the device
what it needs of it. Sums are taken in float64.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from boss_core.errors import InputError


class Distance(Protocol):
    """A distance to a reference held inside."""

    def __call__(self, samples: Tensor, /) -> Tensor:
        """``samples``: (C, N, ...) float32, N samples from each of C candidates, on the device
        of the reference; returns (C,) float64 there. InputError when a sample has another shape
        than those of the reference, or the number of them must be that of the reference and is
        not."""
        ...


def sliced_wasserstein(reference: Tensor, *, projections: int = 256, seed: int = 0) -> Distance:
    """The sliced Wasserstein-2 distance (Bonneel et al. 2015), in the unit of the samples: the
    root of the mean, over random directions, of the squared Wasserstein-2 distance on a line,

    SW^2 = mean over directions u, ranks m of ( <u, x>_(m) - <u, y>_(m) )^2 .

    reference: (N, ...), with N the number of samples of every candidate.
    projections: directions, of norm 1 and drawn once from ``seed``: all candidates share them.
        InputError for fewer than one.
    """
    if projections < 1:
        raise InputError(f"projections: {projections}; at least 1 needed")
    elements = reference[0].numel()
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = generator.standard_normal((elements, projections), dtype=np.float32)
    drawn /= np.linalg.norm(drawn, axis=0)
    directions = torch.from_numpy(drawn).to(reference.device)
    ranked = (reference.flatten(1).float() @ directions).sort(dim=0).values

    def distance(samples: Tensor, /) -> Tensor:
        _check(samples, reference, same_number=True)
        found = (samples.flatten(2).float() @ directions).sort(dim=1).values
        return (found - ranked).double().square().mean(dim=(1, 2)).sqrt()

    return distance


def energy(reference: Tensor) -> Distance:
    """The squared energy distance (Szekely and Rizzo 2013), all pairs counted (V-statistic):

    D^2 = 2 mean |x - y| - mean |x - x'| - mean |y - y'| .

    reference: (M, ...); M need not be the number of samples.
    """
    y = reference.flatten(1).double()
    within_reference = _mean_distance(y[None], y[None])

    def distance(samples: Tensor, /) -> Tensor:
        _check(samples, reference)
        x = samples.flatten(2).double()
        between = _mean_distance(x, y.expand(len(x), -1, -1))
        return 2 * between - _mean_distance(x, x) - within_reference

    return distance


@torch.no_grad()
def feature_frechet(reference: Tensor, features: Callable[[Tensor], Tensor]) -> Distance:
    """The Frechet distance of the normal distributions fitted to features (Heusel et al. 2017):

    |m_x - m_y|^2 + tr( C_x + C_y - 2 (C_y^1/2 C_x C_y^1/2)^1/2 ) .

    reference: (M, ...); M need not be the number of samples.
    features: from samples, (B, ...), to (B, F); called on one candidate at a time, so it must
        round to pixels itself where its network expects them, and split what is too large.

    On a GPU the eigenvalues make the host wait once for each call. For a search; results are
    reported from `boss_core.evaluation.frechet`.
    """
    mean_y, covariance_y = _moments(features(reference)[None])
    values, vectors = torch.linalg.eigh(covariance_y)
    root_y = (vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)) @ vectors.mT
    trace_y = _trace(covariance_y)

    @torch.no_grad()
    def distance(samples: Tensor, /) -> Tensor:
        _check(samples, reference)
        mean_x, covariance_x = _moments(torch.stack([features(x) for x in samples]))
        # The product C_x C_y has these eigenvalues too, but is not symmetric.
        product = root_y @ covariance_x @ root_y
        # Rounding makes a zero slightly negative, or the product slightly unsymmetric.
        squares = torch.linalg.eigvalsh((product + product.mT) / 2).clamp_min(0.0)
        apart = (mean_x - mean_y).square().sum(dim=-1)
        found = apart + _trace(covariance_x) + trace_y - 2 * squares.sqrt().sum(dim=-1)
        # Rounded to pixels, what is no number would be black.
        return found.where(samples.isfinite().flatten(1).all(dim=1), torch.nan)

    return distance


def endpoint_error(reference: Tensor) -> Distance:
    """The mean squared distance to where the reference ends from the same noise, summed over the
    elements of a sample.

    **It is no measure of sample quality, and lowering it can make samples worse**: one long last
    step that lands on the mean of what the data may be, a blur, errs little for each noise. A
    search on it moves the last knot early. Use a distance between distributions unless the
    trajectory itself is what you want to keep.

    reference: (N, ...), in the order of the samples.
    """

    def distance(samples: Tensor, /) -> Tensor:
        _check(samples, reference, same_number=True)
        return (samples - reference).flatten(2).double().square().sum(dim=2).mean(dim=1)

    return distance


def detail_error(reference: Tensor) -> Distance:
    """The squared distance to where the reference ends from the same noise, of high frequencies
    only: of what each pixel differs from the mean of its four neighbours, x - (up + down + left +
    right) / 4, the mean over samples, channels and the pixels that have four.

    What few steps get wrong first of photographs is the fine structure, a blur or a speckle, which
    the squared distance of whole images hardly counts beside large smooth differences. On CIFAR-10
    it ranks schedules as a network of ImageNet does (docs/results/criteria.md); on 8 x 8 digits the
    sliced Wasserstein distance ranks better.

    reference: (N, ..., H, W), in the order of the samples; InputError for sides below 3.
    """
    if reference.ndim < 3 or min(reference.shape[-2:]) < 3:
        raise InputError(
            f"reference: shape {tuple(reference.shape)}; images (N, ..., H, W) with sides of at"
            " least 3 needed"
        )

    def distance(samples: Tensor, /) -> Tensor:
        _check(samples, reference, same_number=True)
        # By candidate: all of them at once would take several times the memory of the samples.
        return torch.stack([_roughness(x - reference) for x in samples])

    return distance


def _roughness(x: Tensor) -> Tensor:
    """The mean square of what a pixel differs from the mean of its four neighbours."""
    inner = x[..., 1:-1, 1:-1]
    around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return (inner - around / 4).double().square().mean()


def _mean_distance(x: Tensor, y: Tensor) -> Tensor:
    """(C,): the mean Euclidean distance of all pairs of (C, N, D) and (C, M, D)."""
    return torch.cdist(x, y).mean(dim=(1, 2))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """The means (C, F) and the unbiased covariances (C, F, F), float64, of (C, N, F)."""
    wide = features.double()
    mean = wide.mean(dim=1, keepdim=True)
    deviation = wide - mean
    return mean[:, 0], deviation.mT @ deviation / (wide.shape[1] - 1)


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(dim=-1)


def _check(samples: Tensor, reference: Tensor, *, same_number: bool = False) -> None:
    """InputError when the shape of the samples does not go with that of the reference."""
    if samples.shape[2:] != reference.shape[1:]:
        raise InputError(
            f"samples: shape {tuple(samples.shape)} for a reference of shape"
            f" {tuple(reference.shape)}; (candidates, samples, ...) with its samples' shape needed"
        )
    if same_number and samples.shape[1] != len(reference):
        raise InputError(
            f"samples: {samples.shape[1]} for a reference of {len(reference)}; as many needed"
        )
