"""Gram matrices of velocity increments, and the costs of all steps that follow from them (eq. 5).

See `boss_core.costs.matrix`, whose notation this is.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boss_core.ode.timesteps import Times

# Increments are widened to float64 this many bytes at a time, in a buffer that is used again:
# small enough for a CPU's cache, large enough that a matrix product runs at full rate.
_BLOCK_BYTES = 4 << 20
# The Gram matrix is symmetric; on a CPU this many rows at a time are multiplied with those from
# there on only, which saves a third of the work.
_BLOCK_ROWS = 33
# On a GPU the increments of all samples are widened together, this many bytes at a time: the
# product of one sample is too small for it.
DEVICE_BYTES = 256 << 20


def gram_matrices(velocities: Tensor, residuals: Tensor | None) -> Tensor:
    """The Gram matrices of the increments d_1..d_{n-1} of each trajectory, in float64.

    velocities: (n, B, elements). Returns (B, n + 1, n + 1), right on and above the diagonal; rows
    and columns 0 and n are zero (no increment ends there), so that indices are those of the grid.

    residuals: (n, B, elements), r_1..r_n. With them, (B, 2n + 2, 2n + 2): r_l is row 2l and d_l
    row 2l + 1.
    """
    n, samples, elements = velocities.shape
    vectors = 1 if residuals is None else 2  # of each grid point
    count = vectors * n - 1  # all that are not zero
    grams = torch.zeros(
        samples,
        vectors * (n + 1),
        vectors * (n + 1),
        dtype=torch.float64,
        device=velocities.device,
    )
    if velocities.device.type != "cpu":
        inner = slice(vectors, vectors + count)
        add_products(grams[:, inner, inner], velocities, residuals)
        return grams
    width = math.ceil(elements / math.ceil(8 * vectors * n * elements / _BLOCK_BYTES))

    # Rows a power of two apart would share the same few cache sets: hence the eight more.
    buffer = grams.new_empty(count, width + 8)
    for sample in range(samples):
        for start in range(0, elements, width):
            columns = slice(start, start + width)
            part = velocities[:, sample, columns]
            if part.dtype.itemsize < 4:
                part = part.float()
            factors = buffer[:, : part.shape[1]]
            # Neighbours within a factor of two, as on a fine grid, subtract without rounding.
            torch.sub(part[1:], part[:-1], out=factors[vectors - 1 :: vectors])
            if residuals is not None:
                factors[::2] = residuals[:, sample, columns]
            for row in range(0, count, _BLOCK_ROWS):
                end = min(row + _BLOCK_ROWS, count)
                block = slice(vectors + row, vectors + end)
                product = grams[sample, block, vectors + row : vectors + count]
                product.addmm_(factors[row:end], factors[row:].T)
    return grams


def add_products(grams: Tensor, velocities: Tensor, residuals: Tensor | None) -> None:
    """Adds to ``grams``, (B, count, count), those of all samples at once; see `gram_matrices`."""
    samples, count = grams.shape[:2]
    vectors = 1 if residuals is None else 2
    width = max(1, DEVICE_BYTES // (8 * samples * count))
    for start in range(0, velocities.shape[2], width):
        part = velocities[..., start : start + width]
        if part.dtype.itemsize < 4:
            part = part.float()
        factors = grams.new_empty(count, samples, part.shape[2])
        torch.sub(part[1:], part[:-1], out=factors[vectors - 1 :: vectors])
        if residuals is not None:
            factors[::2] = residuals[..., start : start + width]
        grams += torch.bmm(factors.transpose(0, 1), factors.permute(1, 2, 0))


def step_weights(times: Times, rows: int) -> NDArray[np.float64]:
    """(rows, n + 1): the weight of each row of a Gram matrix in the error of a step to j.

    W_lj = t_j - t_l for increment l < j, and 1 for residual l <= j, where there are residuals:
    for 2n + 2 rows instead of n + 1. 0 elsewhere.
    """
    increments = np.triu(times[None, :] - times[:, None], k=1)
    if rows == len(times):
        return increments
    return np.stack([np.triu(np.ones_like(increments)), increments], axis=1).reshape(rows, -1)


def costs_of_gram(gram: NDArray[np.float64], times: Times) -> NDArray[np.float64]:
    """(n + 1, n + 1): the costs of all steps from a mean Gram matrix, as `CostMatrix.gram`."""
    found = torch.from_numpy(gram[None].copy())
    return cost_from_gram(found, step_weights_tensor(times, gram.shape[-1]))[0].numpy()


def step_weights_tensor(times: Times, rows: int) -> Tensor:
    """As `step_weights`, for torch."""
    return torch.from_numpy(step_weights(times, rows))


def cost_from_gram(gram: Tensor, weights: Tensor) -> Tensor:
    """All costs of eq. 5 from Gram matrices, (..., n + 1, n + 1) or twice that, overwritten.

    c_ij = sum over l, m in (i, j] of W_lj W_mj G_lm: adding the increments one by one from j
    down to i, each brings its own square and twice its product with those after it.
    """
    gram.triu_().mul_(2).diagonal(dim1=-2, dim2=-1).div_(2)
    share = (gram @ weights).mul_(weights)
    nodes = weights.shape[1]
    if len(weights) > nodes:  # of both vectors of each grid point
        share = share.unflatten(-2, (nodes, -1)).sum(-2)
    # Entry (i, j) sums the rows below i only.
    cost = torch.zeros_like(share)
    cost[..., :-1, :] = share[..., 1:, :].flip(-2).cumsum(-2).flip(-2)
    # A sum of squares that rounds to a negative number is a zero.
    return cost.clamp_min_(0.0)
