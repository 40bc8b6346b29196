"""The kernels of `boss_core.networks.normalization`: they need a GPU and Triton."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

# Numbers of one image that a program holds in registers, and how many of them a thread.
_TILE, _EACH = 16384, 32


@triton.jit
def _group_sums(of_channels, channels, SIZE: tl.constexpr):
    """The sum over the group of each channel, for every channel; groups may have any size."""
    together = channels[:, None] // SIZE == channels[None, :] // SIZE
    return tl.sum(tl.where(together, of_channels[None, :], 0.0), axis=1)


@triton.jit
def _forward(
    x, shift, weight, bias, y, means, scales, eps,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SIZE: tl.constexpr, EACH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SHIFT: tl.constexpr, ACTIVATE: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    channel = tl.program_id(0) * EACH + column
    pixel = tl.arange(0, ROWS)
    inside = column < EACH
    mask = (pixel < PIXELS)[:, None] & inside[None, :]
    at = sample * PIXELS * CHANNELS + pixel[:, None] * CHANNELS + channel[None, :]
    of_sample = sample * CHANNELS + channel

    value = tl.load(x + at, mask, other=0.0).to(tl.float32)
    if SHIFT:
        value += tl.load(shift + of_sample, inside, other=0.0).to(tl.float32)[None, :]
        value = tl.where(mask, value, 0.0)
    mean = _group_sums(tl.sum(value, axis=0), channel, SIZE) / (PIXELS * SIZE)
    value = tl.where(mask, value - mean[None, :], 0.0)
    variance = _group_sums(tl.sum(value * value, axis=0), channel, SIZE) / (PIXELS * SIZE)
    scale = 1.0 / tl.sqrt(variance + eps)
    w = tl.load(weight + channel, inside, other=0.0).to(tl.float32) * scale
    b = tl.load(bias + channel, inside, other=0.0).to(tl.float32)
    value = value * w[None, :] + b[None, :]
    if ACTIVATE:
        value *= tl.sigmoid(value)
    tl.store(y + at, value, mask)
    tl.store(means + of_sample, mean, inside)
    tl.store(scales + of_sample, scale, inside)


@triton.jit
def _backward(
    dy, x, shift, weight, bias, means, scales, dx, dshift, dweight, dbias,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SIZE: tl.constexpr, EACH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SHIFT: tl.constexpr, ACTIVATE: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    channel = tl.program_id(0) * EACH + column
    pixel = tl.arange(0, ROWS)
    inside = column < EACH
    mask = (pixel < PIXELS)[:, None] & inside[None, :]
    at = sample * PIXELS * CHANNELS + pixel[:, None] * CHANNELS + channel[None, :]
    of_sample = sample * CHANNELS + channel

    mean = tl.load(means + of_sample, inside, other=0.0)
    scale = tl.load(scales + of_sample, inside, other=0.0)
    w = tl.load(weight + channel, inside, other=0.0).to(tl.float32)
    if SHIFT:
        mean -= tl.load(shift + of_sample, inside, other=0.0).to(tl.float32)
    normal = (tl.load(x + at, mask, other=0.0).to(tl.float32) - mean[None, :]) * scale[None, :]
    grad = tl.load(dy + at, mask, other=0.0).to(tl.float32)
    if ACTIVATE:
        b = tl.load(bias + channel, inside, other=0.0).to(tl.float32)
        z = normal * w[None, :] + b[None, :]
        gate = tl.sigmoid(z)
        grad *= gate * (1.0 + z * (1.0 - gate))
    # Outside the mask the gradient is 0, so that no sum needs a mask of its own.
    of_weight = tl.sum(grad * normal, axis=0)
    of_bias = tl.sum(grad, axis=0)
    tl.store(dweight + of_sample, of_weight, inside)
    tl.store(dbias + of_sample, of_bias, inside)
    along = _group_sums(of_weight * w, channel, SIZE) / (PIXELS * SIZE)
    constant = _group_sums(of_bias * w, channel, SIZE) / (PIXELS * SIZE)
    grad = (grad * w[None, :] - constant[None, :] - normal * along[None, :]) * scale[None, :]
    tl.store(dx + at, grad, mask)
    if SHIFT:
        tl.store(dshift + of_sample, tl.sum(tl.where(mask, grad, 0.0), axis=0), inside)


@triton_op("boss_core::group_norm", mutates_args={})
def normalize(
    x: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    activate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y as in `boss_core.networks.normalization.group_norm`, x (B, C, H, W) stored channels last,
    and for each sample and channel the mean and 1 / standard deviation of its group, (B, C)."""
    y = torch.empty_like(x)
    means = x.new_empty(x.shape[:2], dtype=torch.float32)
    scales = torch.empty_like(means)
    shape, grid = _shape(x, groups)
    wrap_triton(_forward)[grid](
        x, x if shift is None else shift.contiguous(), weight, bias, y, means, scales, eps,
        SHIFT=shift is not None, ACTIVATE=activate, **shape,
    )  # fmt: skip
    return y, means, scales


@triton_op("boss_core::group_norm_backward", mutates_args={})
def normalize_backward(
    dy: Tensor,
    x: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    means: Tensor,
    scales: Tensor,
    groups: int,
    activate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, and of shift, weight and bias for each sample, (B, C) float32."""
    dx = torch.empty_like(x)
    dshift, dweight, dbias = (torch.empty_like(means) for _ in range(3))
    shape, grid = _shape(x, groups)
    wrap_triton(_backward)[grid](
        dy, x, x if shift is None else shift.contiguous(), weight, bias, means, scales,
        dx, dshift, dweight, dbias,
        SHIFT=shift is not None, ACTIVATE=activate, **shape,
    )  # fmt: skip
    return dx, dshift, dweight, dbias


def _shape(x: Tensor, groups: int) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """What of an image a program takes: as many whole groups as fit; and the programs."""
    samples, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    size = channels // groups
    rows = triton.next_power_of_2(pixels)
    taken = max(
        n
        for n in range(1, groups + 1)
        if groups % n == 0 and (n == 1 or rows * triton.next_power_of_2(n * size) <= _TILE)
    )
    columns = triton.next_power_of_2(taken * size)
    shape = {
        "PIXELS": pixels,
        "CHANNELS": channels,
        "SIZE": size,
        "EACH": taken * size,
        "ROWS": rows,
        "COLUMNS": columns,
        "num_warps": min(16, max(1, rows * columns // (32 * _EACH))),
    }
    return shape, (groups // taken, samples, 1)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, shift, weight, bias, ctx.groups, _, ctx.activate = inputs
    ctx.save_for_backward(x, shift, weight, bias, *output[1:])


def _gradients(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, shift, weight, bias, means, scales = ctx.saved_tensors
    dx, dshift, dweight, dbias = normalize_backward(
        dy.contiguous(memory_format=torch.channels_last),
        x, shift, weight, bias, means, scales, ctx.groups, ctx.activate,
    )  # fmt: skip
    return (
        dx,
        None if shift is None else dshift.to(shift.dtype),
        dweight.sum(dim=0).to(weight.dtype),
        dbias.sum(dim=0).to(bias.dtype),
        None,
        None,
        None,
    )


normalize.register_autograd(_gradients, setup_context=_setup)
