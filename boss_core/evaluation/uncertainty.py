"""How far a Frechet distance or a KID would be another one with other noise: standard errors.

A distance of some thousand samples depends on which noise these start from, often by more than what
two methods differ by. The jackknife tells by how much: the samples are cut into blocks, each block
is left out in turn, and what the others give is kept (`boss_core.evaluation.comparison`). On
Gaussians of 8 and 64 numbers the standard errors are within a quarter of the spread over repeated
draws, for 10, 20 and 50 blocks alike; the bootstrap's, at five times the cost and more, were up to
two thirds too large. Near no distance at all, where nothing but chance is measured, both are too
large, the jackknife's by a fifth to a third.

The reference images are taken as given: what other images would change is no part of it.
"""

import torch
from torch import Tensor

from boss_core.errors import InputError
from boss_core.evaluation.comparison import Estimate

BLOCKS = 20


def blocks_of(samples: int) -> int:
    """`BLOCKS`, or fewer where there would not be two samples in each."""
    return min(BLOCKS, samples // 2)


def frechet_with_error(generated: Tensor, reference: Tensor, blocks: int = BLOCKS) -> Estimate:
    """The Frechet distance of two sets of features (Heusel et al. 2017, eq. 6), each taken as a
    Gaussian, and the standard error of what the noise of the first one does to it.

    generated: (N, F), the features of samples, those of noise i in row i. reference: (M, F), on
    the same device, where it computes in float64. It takes one eigendecomposition of F x F, or of
    M x M where that is less, and ``blocks + 1`` sets of min(N, M, F) eigenvalues.

    InputError for features that are not two tables of as many columns or not finite, for fewer
    than two blocks, fewer than two samples a block, or fewer than two of the reference.
    """
    x, y = _features(generated, reference, blocks)
    centre = y.mean(dim=0)
    x, y = x - centre, y - centre  # of the numbers, none is larger than it need be
    if len(y) < y.shape[1]:
        _, deviations, rows = torch.linalg.svd(y / (len(y) - 1) ** 0.5, full_matrices=False)
        vectors = rows.T
    else:
        variances, vectors = torch.linalg.eigh(y.T @ y / (len(y) - 1))
        deviations = variances.clamp(min=0).sqrt()
    # Where two covariances are A and B, tr (A B)^1/2 = tr (A^1/2 B A^1/2)^1/2, of which the latter
    # is symmetric, and the covariance of samples that A^1/2 has turned.
    turned = (x @ vectors) * deviations
    left_out = [_without(x, turned, None), *(_without(x, turned, b, blocks) for b in range(blocks))]
    found = (deviations.square().sum() + torch.stack(left_out)).cpu().numpy()
    return Estimate(float(found[0]), found[1:])


def _without(x: Tensor, turned: Tensor, block: int | None, blocks: int = BLOCKS) -> Tensor:
    """The Frechet distance to a reference of mean 0, less the trace of its covariance.

    x: (N, F) features. turned: (N, R), those times the root of the reference's covariance, of rank
    R. block: the samples that are left out, None for all of them to stay."""
    if block is not None:
        kept = torch.arange(len(x), device=x.device) % blocks != block
        x, turned = x[kept], turned[kept]
    mean, of_turned = x.mean(dim=0), turned.mean(dim=0)
    degrees = len(x) - 1
    spread = (x - mean).square().sum() / degrees
    centred = turned - of_turned
    fewer = len(x) < turned.shape[1]  # the same eigenvalues but for zeros
    products = centred @ centred.T if fewer else centred.T @ centred
    root = torch.linalg.eigvalsh(products / degrees).clamp(min=0).sqrt().sum()
    return mean.square().sum() + spread - 2 * root


def kid_with_error(
    value: float, generated: Tensor, reference: Tensor, blocks: int = BLOCKS
) -> Estimate:
    """The uncertainty of a KID (Binkowski et al. 2018, eq. 4, kernel (x'y / F + 1)^3).

    value: the KID that was measured, which as a mean over random subsets is an estimate of the
    same number. The replicates are that, and what leaving out a block changes in the unbiased
    estimate from all samples. generated, reference: as for `frechet_with_error`, with its errors.
    """
    x, y = _features(generated, reference, blocks)
    block = torch.arange(len(x), device=x.device) % blocks
    member = (block[:, None] == torch.arange(blocks, device=x.device)).to(x.dtype)
    parts = [x[block == b] for b in range(blocks)]
    # The kernel between the samples of two blocks, none with itself, and of a block with all of y.
    within = torch.stack([_kernel(part, x).sum(dim=0) @ member for part in parts])
    within -= torch.diag((x.square().sum(dim=1) / x.shape[1] + 1) ** 3 @ member)
    across = torch.stack([_kernel(part, y).sum() for part in parts])
    sizes = member.sum(dim=0)

    def of(count: Tensor, pairs: Tensor, with_reference: Tensor) -> Tensor:
        return pairs / (count * (count - 1)) - 2 * with_reference / (count * len(y))

    whole = of(sizes.sum(), within.sum(), across.sum())
    # Of a block: the pairs within it and both ways with the others.
    pairs = within.sum() - within.sum(dim=0) - within.sum(dim=1) + within.diagonal()
    left_out = of(sizes.sum() - sizes, pairs, across.sum() - across)
    return Estimate(value, value + (left_out - whole).cpu().numpy())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _features(generated: Tensor, reference: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    for name, features in (("generated", generated), ("reference", reference)):
        if features.ndim != 2 or features.shape[1] != generated.shape[-1]:
            shapes = f"{tuple(generated.shape)} and {tuple(reference.shape)}"
            raise InputError(
                f"features: {shapes}; (samples, features) of as many features each needed"
            )
        if not features.isfinite().all():
            raise InputError(f"features: {name} are not all finite; finite ones needed")
    if blocks < 2 or len(generated) < 2 * blocks:
        raise InputError(
            f"blocks: {blocks} of {len(generated)} samples; 2 or more, of two samples each, needed"
        )
    if len(reference) < 2:
        raise InputError(f"features: {len(reference)} of the reference; 2 or more needed")
    return generated.double(), reference.double()
