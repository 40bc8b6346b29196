"""Frechet distance and kernel distance between sets of features, in torch and float64.

The same numbers as torch-fidelity's, which the pipeline measures with and which a machine with
nothing but torch need not have; a test compares them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SUBSETS, SUBSET = 100, 1000  # of the kernel distance


@dataclass(frozen=True)
class Features:
    """Of a set of images, (N, F) float64, with what the Frechet distance needs of them.

    root: a square root of the covariance: rows whose products it is.
    """

    features: Tensor
    mean: Tensor
    root: Tensor


def of_features(features: Tensor) -> Features:
    """The statistics of (N, F) features."""
    x = features.double()
    mean = x.mean(dim=0)
    # The covariance is root^T root; as many rows as features are enough of them.
    centred = (x - mean) / (len(x) - 1) ** 0.5
    root = torch.linalg.qr(centred, mode="r").R if len(x) > x.shape[1] else centred
    return Features(x, mean, root)


def frechet_distance(one: Features, other: Features) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017). With C = R^T R, the trace
    of the root is the sum of the singular values of R1 R2^T, taken by the eigenvalues of its
    square: on GPUs that is far faster, and costs half of float64's digits."""
    product = one.root @ other.root.T
    if product.shape[0] > product.shape[1]:
        product = product.T
    cross = torch.linalg.eigvalsh(product @ product.T).clamp(min=0.0).sqrt().sum()
    traces = one.root.square().sum() + other.root.square().sum()
    return float((one.mean - other.mean).square().sum() + traces - 2.0 * cross)


def kernel_distance(
    one: Features, other: Features, *, seed: int = 0, subsets: int = SUBSETS, size: int = SUBSET
) -> tuple[float, float]:
    """KID (Binkowski et al. 2018): the unbiased squared MMD of a cubic kernel, mean and standard
    deviation over random subsets, drawn without replacement."""
    size = min(size, len(one.features), len(other.features))
    draw = torch.Generator().manual_seed(seed)

    def subset(of: Features) -> Tensor:
        chosen = torch.randperm(len(of.features), generator=draw)[:size]
        return of.features[chosen.to(of.features.device)]

    values = torch.stack([squared_mmd(subset(one), subset(other)) for _ in range(subsets)])
    return float(values.mean()), float(values.std(unbiased=False))


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased, of the kernel (x . y / F + 1)^3, for as many x as y."""
    m, width = x.shape

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / width + 1.0) ** 3

    within = [k.sum() - k.diagonal().sum() for k in (kernel(x, x), kernel(y, y))]
    return (within[0] + within[1]) / (m * (m - 1)) - 2.0 * kernel(x, y).sum() / m**2
