"""The kernels of `boss_core.networks.normalization`: they need a GPU and Triton."""

# Kernels have no types that Python knows.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

# A program takes this many numbers of one image, but 16 channels at least, as less than 32 bytes
# side by side cost as much as 32, and 32 at most, as sums over groups compare all with all.
# Measured on an H100, among 2,048 to 32,768 numbers.
_NUMBERS, _FEWEST, _MOST = 8192, 16, 32


@triton.jit
def _group_sums(of_channels, channels, SIZE: tl.constexpr):
    """The sum over the group of each channel, for every channel; groups may have any size."""
    together = channels[:, None] // SIZE == channels[None, :] // SIZE
    return tl.sum(tl.where(together, of_channels[None, :], 0.0), axis=1)


@triton.jit
def _through_silu(grad, z):
    """The gradient of z from that of silu(z)."""
    gate = tl.sigmoid(z)
    return grad * gate * (1.0 + z * (1.0 - gate))


@triton.jit
def group_norm_forward(
    x, shift, weight, bias, y, means, scales, EPS: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SIZE: tl.constexpr, EACH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SHIFT: tl.constexpr, ACTIVATE: tl.constexpr,
):  # fmt: skip
    """Program (i, b): the i-th EACH channels of sample b; see `normalize`."""
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
    scale = 1.0 / tl.sqrt(variance + EPS)
    w = tl.load(weight + channel, inside, other=0.0).to(tl.float32) * scale
    b = tl.load(bias + channel, inside, other=0.0).to(tl.float32)
    value = value * w[None, :] + b[None, :]
    if ACTIVATE:
        value *= tl.sigmoid(value)
    tl.store(y + at, value, mask)
    tl.store(means + of_sample, mean, inside)
    tl.store(scales + of_sample, scale, inside)


@triton.jit
def group_norm_backward(
    dy, x, shift, weight, bias, means, scales, dx, dshift, dparameters,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SIZE: tl.constexpr, EACH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SHIFT: tl.constexpr, ACTIVATE: tl.constexpr,
):  # fmt: skip
    """As `group_norm_forward`; see `normalize_backward`."""
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
    b = tl.load(bias + channel, inside, other=0.0).to(tl.float32)
    normal = (tl.load(x + at, mask, other=0.0).to(tl.float32) - mean[None, :]) * scale[None, :]
    grad = tl.load(dy + at, mask, other=0.0).to(tl.float32)
    if ACTIVATE:
        grad = _through_silu(grad, normal * w[None, :] + b[None, :])
    # Outside the mask the gradient is 0, so that no sum needs a mask of its own.
    of_weight = tl.sum(grad * normal, axis=0)
    of_bias = tl.sum(grad, axis=0)
    tl.store(dparameters + of_sample, of_weight, inside)
    samples = tl.num_programs(1).to(tl.int64)
    tl.store(dparameters + samples * CHANNELS + of_sample, of_bias, inside)
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
    wrap_triton(group_norm_forward)[grid](
        x, x if shift is None else shift.contiguous(), weight, bias, y, means, scales,
        # Not an argument: compiled, that would be a float64, and all that it touches as well.
        EPS=eps, SHIFT=shift is not None, ACTIVATE=activate, **shape,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x; of shift, (B, C); and of weight and bias for each sample, (2, B, C)."""
    dx, dshift = torch.empty_like(x), torch.empty_like(means)
    dparameters = means.new_empty(2, *means.shape)
    shape, grid = _shape(x, groups)
    wrap_triton(group_norm_backward)[grid](
        dy, x, x if shift is None else shift.contiguous(), weight, bias, means, scales,
        dx, dshift, dparameters,
        SHIFT=shift is not None, ACTIVATE=activate, **shape,
    )  # fmt: skip
    return dx, dshift, dparameters


def _shape(x: Tensor, groups: int) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """What of an image a program takes: as many whole groups as fit; and the programs."""
    samples, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    size = channels // groups
    rows = triton.next_power_of_2(pixels)
    most = min(max(_NUMBERS // rows, _FEWEST), _MOST)
    taken = max(
        n
        for n in range(1, groups + 1)
        if groups % n == 0 and (n == 1 or triton.next_power_of_2(n * size) <= most)
    )
    columns = triton.next_power_of_2(taken * size)
    shape = {
        "PIXELS": pixels,
        "CHANNELS": channels,
        "SIZE": size,
        "EACH": taken * size,
        "ROWS": rows,
        "COLUMNS": columns,
        "num_warps": min(8, max(1, rows * columns // 1024)),
    }
    return shape, (groups // taken, samples, 1)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, shift, weight, bias, ctx.groups, _, ctx.activate = inputs
    ctx.save_for_backward(x, shift, weight, bias, *output[1:])


def _gradients(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, shift, weight, bias, means, scales = ctx.saved_tensors
    dx, dshift, dparameters = normalize_backward(
        dy.contiguous(memory_format=torch.channels_last),
        x, shift, weight, bias, means, scales, ctx.groups, ctx.activate,
    )  # fmt: skip
    dweight, dbias = dparameters.sum(dim=1)
    return (
        dx,
        None if shift is None else dshift.to(shift.dtype),
        dweight.to(weight.dtype),
        dbias.to(bias.dtype),
        None,
        None,
        None,
    )


normalize.register_autograd(_gradients, setup_context=_setup)
