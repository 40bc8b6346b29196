"""The kernels of `boss_core.networks.normalization`: they need a GPU and Triton."""

# Kernels have no types that Python knows.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

# A program takes this many channels of one image, and backward, where it holds two numbers for each
# of these, at most so many numbers. Measured on an H100 for 16 to 1,024 pixels.
_CHANNELS, _NUMBERS_BACKWARD = 32, 16384
# 16 bytes a thread are read fastest, 8 bytes leave sums over pixels fewer threads to exchange with.
_WIDTH = tl.constexpr(4)
_PTX = tl.constexpr(torch.version.cuda is not None and os.environ.get("TRITON_INTERPRET") != "1")


@triton.jit
def _sigmoid(z):
    """1 / (1 + exp(-z)); in PTX, as the compiler's own takes eight instructions more for numbers
    below 2^-126, of which the results here have no use."""
    if _PTX:
        return tl.inline_asm_elementwise(
            """{
            .reg .f32 e;
            mul.ftz.f32 e, $1, 0fBFB8AA3B;  // -1 / log 2
            ex2.approx.ftz.f32 e, e;
            add.ftz.f32 e, e, 0f3F800000;  // 1
            rcp.approx.ftz.f32 $0, e;
            }""",
            "=f,f",
            [z],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    else:
        return tl.sigmoid(z)


@triton.jit
def _for_channels(of_groups, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    """What each channel's group has, for every channel."""
    spread = tl.broadcast_to(of_groups[:, None], [COLUMNS // SIZE, SIZE])
    return tl.reshape(spread, [COLUMNS])


@triton.jit
def _group_sums(of_channels, channel, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum over the group of each channel, for every channel; groups may have any size."""
    if COLUMNS % SIZE == 0:
        sums = tl.sum(tl.reshape(of_channels, [COLUMNS // SIZE, SIZE]), axis=1)
        return _for_channels(sums, SIZE, COLUMNS)
    else:
        together = channel[:, None] // SIZE == channel[None, :] // SIZE
        return tl.sum(tl.where(together, of_channels[None, :], 0.0), axis=1)


@triton.jit
def _image_sums(value, channel, SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """`_group_sums` over all pixels."""
    if COLUMNS % SIZE == 0:  # within a thread first: fewer numbers for threads to exchange
        by_group = tl.sum(tl.reshape(value, [ROWS, COLUMNS // SIZE, SIZE]), axis=2)
        return _for_channels(tl.sum(by_group, axis=0), SIZE, COLUMNS)
    else:
        return _group_sums(tl.sum(value, axis=0), channel, SIZE, COLUMNS)


# A kernel takes each tensor and each constant that it is compiled for as an argument of its own.
@triton.jit
def group_norm_forward(
    x, branch, skip, shift, weight, bias, total, y, means, scales,
    EPS: tl.constexpr, FACTOR: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, OF_X: tl.constexpr, OF_SKIP: tl.constexpr,
    SIZE: tl.constexpr, EACH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BRANCH: tl.constexpr, SKIP: tl.constexpr, SHIFT: tl.constexpr, ACTIVATE: tl.constexpr,
):  # fmt: skip
    """Program (i, b): the i-th EACH channels of sample b; see `normalize`. SHIFT: its dimensions,
    0 without one."""
    sample = tl.program_id(1).to(tl.int64)
    column = tl.max_contiguous(tl.arange(0, COLUMNS), _WIDTH)
    first = tl.program_id(0) * EACH
    channel = first + column
    pixel = tl.arange(0, ROWS)
    inside = column < EACH
    mask = (pixel < PIXELS)[:, None] & inside[None, :]
    at = pixel[:, None] * CHANNELS + channel[None, :]
    of_sample = sample * CHANNELS + channel
    own = sample * PIXELS * CHANNELS
    own_x = sample * PIXELS * OF_X

    if SKIP:
        # All channels of a program are of x or of the skip.
        summed = first < OF_X
        source = tl.where(summed, x + own_x, skip + (sample * PIXELS * OF_SKIP - OF_X))
        at_x = pixel[:, None] * tl.where(summed, OF_X, OF_SKIP) + channel[None, :]
        factor = tl.where(summed, FACTOR, 1.0)
    else:
        summed, source, at_x, factor = True, x + own_x, at, FACTOR
    value = tl.load(source + at_x, mask, other=0.0).to(tl.float32)
    if BRANCH:
        value += tl.load(branch + own_x + at_x, mask & summed, other=0.0).to(tl.float32)
    if SHIFT == 1:
        value += tl.load(shift + channel, inside & summed, other=0.0).to(tl.float32)[None, :]
    if SHIFT == 2:
        value += tl.load(shift + of_sample, inside, other=0.0).to(tl.float32)[None, :]
    if FACTOR != 1.0:
        value *= factor
    if BRANCH or SKIP:
        tl.store(total + own + at, value, mask)
    value = tl.where(mask, value, 0.0)
    mean = _image_sums(value, channel, SIZE, ROWS, COLUMNS) / (PIXELS * SIZE)
    value = tl.where(mask, value - mean[None, :], 0.0)
    variance = _image_sums(value * value, channel, SIZE, ROWS, COLUMNS) / (PIXELS * SIZE)
    scale = 1.0 / tl.sqrt(variance + EPS)
    w = tl.load(weight + channel, inside, other=0.0).to(tl.float32) * scale
    b = tl.load(bias + channel, inside, other=0.0).to(tl.float32)
    value = value * w[None, :] + b[None, :]
    if ACTIVATE:
        value *= _sigmoid(value)
    tl.store(y + own + at, value, mask)
    tl.store(means + of_sample, mean, inside)
    tl.store(scales + of_sample, scale, inside)


# As above; and one kernel, as a second would read everything once more.
@triton.jit
def group_norm_backward(
    dy, dtotal, total, shift, weight, bias, means, scales, dx, dskip, sums,
    FACTOR: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, OF_X: tl.constexpr, OF_SKIP: tl.constexpr,
    SIZE: tl.constexpr, EACH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    MORE: tl.constexpr, SKIP: tl.constexpr, SHIFT: tl.constexpr, ACTIVATE: tl.constexpr,
):  # fmt: skip
    """As `group_norm_forward`; see `normalize_backward`. MORE: total has another gradient,
    dtotal."""
    sample = tl.program_id(1).to(tl.int64)
    column = tl.max_contiguous(tl.arange(0, COLUMNS), _WIDTH)
    first = tl.program_id(0) * EACH
    channel = first + column
    pixel = tl.arange(0, ROWS)
    inside = column < EACH
    mask = (pixel < PIXELS)[:, None] & inside[None, :]
    at = pixel[:, None] * CHANNELS + channel[None, :]
    of_sample = sample * CHANNELS + channel
    own = sample * PIXELS * CHANNELS

    mean = tl.load(means + of_sample, inside, other=0.0)
    scale = tl.load(scales + of_sample, inside, other=0.0)
    w = tl.load(weight + channel, inside, other=0.0).to(tl.float32)
    b = tl.load(bias + channel, inside, other=0.0).to(tl.float32)
    if SHIFT == 2:  # total is x then
        mean -= tl.load(shift + of_sample, inside, other=0.0).to(tl.float32)
    below = -mean * scale
    value = tl.load(total + own + at, mask, other=0.0).to(tl.float32)
    grad = tl.load(dy + own + at, mask, other=0.0).to(tl.float32)
    normal = value * scale[None, :] + below[None, :]
    if ACTIVATE:
        z = normal * w[None, :] + b[None, :]
        gate = _sigmoid(z)
        grad = grad * gate * (z * (1.0 - gate) + 1.0)
    # Outside the mask the gradient is 0, so that neither sum needs a mask of its own.
    of_weight = tl.sum(grad * normal, axis=0)
    of_bias = tl.sum(grad, axis=0)
    samples = tl.num_programs(1).to(tl.int64)
    tl.store(sums + of_sample, of_weight, inside)
    tl.store(sums + samples * CHANNELS + of_sample, of_bias, inside)
    along = _group_sums(of_weight * w, channel, SIZE, COLUMNS) / (PIXELS * SIZE)
    constant = _group_sums(of_bias * w, channel, SIZE, COLUMNS) / (PIXELS * SIZE)
    if SKIP:
        summed = first < OF_X
        target = tl.where(
            summed, dx + sample * PIXELS * OF_X, dskip + (sample * PIXELS * OF_SKIP - OF_X)
        )
        at_x = pixel[:, None] * tl.where(summed, OF_X, OF_SKIP) + channel[None, :]
        factor = tl.where(summed, FACTOR, 1.0)
    else:
        summed, target, at_x, factor = True, dx + own, at, FACTOR
    # ((grad w - constant - normal along) scale + dtotal) factor
    scale *= factor
    of_normal, rest = -along * scale, -constant * scale
    grad = grad * (w * scale)[None, :] + (normal * of_normal[None, :] + rest[None, :])
    if MORE:
        grad += tl.load(dtotal + own + at, mask, other=0.0).to(tl.float32) * factor
    tl.store(target + at_x, grad, mask)
    if SHIFT:
        of_shift = tl.sum(tl.where(mask, grad, 0.0), axis=0)
        tl.store(sums + 2 * samples * CHANNELS + of_sample, of_shift, inside & summed)


# An operator of torch takes tensors and numbers, no records of them: one argument each.
@triton_op("boss_core::group_norm", mutates_args={})
def normalize(
    x: Tensor,
    branch: Tensor | None,
    skip: Tensor | None,
    shift: Tensor | None,
    factor: float,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    activate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """total = (x + branch + shift) factor, with the channels of the skip behind; y, its
    normalisation; and for each sample and channel the mean and 1 / standard deviation of its group,
    (B, C).

    x, branch, skip: (B, C, H, W), stored channels last, skip with channels of its own; x with whole
    groups then. shift: (C,); (B, C) without branch and skip. total: empty without these, and factor
    1.
    """
    samples, of_x = x.shape[:2]
    channels = of_x + (0 if skip is None else skip.shape[1])
    y = _empty(x, channels)
    total = torch.empty_like(y) if branch is not None or skip is not None else x.new_empty(0)
    means = x.new_empty((samples, channels), dtype=torch.float32)
    scales = torch.empty_like(means)
    shape, programs = _shape(y, of_x, groups, _CHANNELS)
    numbers = shape["ROWS"] * shape["COLUMNS"]
    wrap_triton(group_norm_forward)[programs, samples, 1](
        x, _or(branch, x), _or(skip, x), x if shift is None else shift.contiguous(),
        weight, bias, total, y, means, scales,
        # Not arguments: compiled, these would be float64, and all that they touch as well.
        EPS=eps, FACTOR=factor, BRANCH=branch is not None, SKIP=skip is not None,
        SHIFT=0 if shift is None else shift.dim(), ACTIVATE=activate,
        num_warps=min(16, max(1, numbers // 2048)), **shape,
    )  # fmt: skip
    return total, y, means, scales


@triton_op("boss_core::group_norm_backward", mutates_args={})
def normalize_backward(
    dtotal: Tensor | None,
    dy: Tensor,
    total: Tensor,
    of_x: int,
    shift: Tensor | None,
    factor: float,
    weight: Tensor,
    bias: Tensor,
    means: Tensor,
    scales: Tensor,
    groups: int,
    activate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, which is the branch's too; of skip; and for each sample those of weight
    and bias, and of shift where there is one: (2 or 3, B, C). The skip's channels have no shift.

    total: as `normalize` stored it; else x. of_x: the channels of x.
    """
    samples, channels = total.shape[:2]
    dx, dskip = _empty(total, of_x), _empty(total, channels - of_x)
    sums = means.new_empty(2 if shift is None else 3, *means.shape)
    pixels = triton.next_power_of_2(total.shape[2] * total.shape[3])
    most = min(_CHANNELS, max(1, _NUMBERS_BACKWARD // pixels))
    shape, programs = _shape(total, of_x, groups, most)
    numbers = shape["ROWS"] * shape["COLUMNS"]
    wrap_triton(group_norm_backward)[programs, samples, 1](
        dy, _or(dtotal, dy), total, dy if shift is None else shift.contiguous(),
        weight, bias, means, scales, dx, dskip, sums,
        FACTOR=factor, MORE=dtotal is not None, SKIP=of_x < channels,
        SHIFT=0 if shift is None else shift.dim(), ACTIVATE=activate,
        num_warps=min(16, max(1, numbers // 1024)), **shape,
    )  # fmt: skip
    return dx, dskip, sums


def _empty(like: Tensor, channels: int) -> Tensor:
    """As many images of the same size, with other channels; allocated as torch's compiler does it
    for `torch.empty_like`: what it finds allocated otherwise, it copies before a kernel writes."""
    samples, _, height, width = like.shape
    return like.new_empty((samples, height, width, channels)).permute(0, 3, 1, 2)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """Something to pass to a kernel, which does not read the other."""
    return other if tensor is None else tensor


def _shape(y: Tensor, of_x: int, groups: int, most: int) -> tuple[dict[str, Any], int]:
    """What of an image a program takes: as many whole groups as have ``most`` channels, all from x
    or none; and the programs for an image."""
    channels, pixels = y.shape[1], y.shape[2] * y.shape[3]
    size = channels // groups
    taken = max(
        n
        for n in range(1, groups + 1)
        if groups % n == 0
        and of_x % (n * size) == 0
        and (n == 1 or triton.next_power_of_2(n * size) <= most)
    )
    shape = {
        "PIXELS": pixels,
        "CHANNELS": channels,
        "OF_X": of_x,
        "OF_SKIP": channels - of_x,
        "SIZE": size,
        "EACH": taken * size,
        "ROWS": triton.next_power_of_2(pixels),
        "COLUMNS": triton.next_power_of_2(taken * size),
    }
    return shape, groups // taken


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, branch, skip, shift, ctx.factor, weight, bias, ctx.groups, _, ctx.activate = inputs
    total, _, means, scales = output
    ctx.set_materialize_grads(False)  # where nothing else reads the total
    ctx.of_x, ctx.branched, ctx.skipped = x.shape[1], branch is not None, skip is not None
    if not ctx.branched and not ctx.skipped:
        total = x
    ctx.save_for_backward(total, shift, weight, bias, means, scales)


def _gradients(
    ctx: Any, dtotal: Tensor | None, dy: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    total, shift, weight, bias, means, scales = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(total)
    dx, dskip, sums = normalize_backward(
        dtotal if dtotal is None else dtotal.contiguous(memory_format=torch.channels_last),
        dy.contiguous(memory_format=torch.channels_last),
        total, ctx.of_x, shift, ctx.factor, weight, bias, means, scales, ctx.groups, ctx.activate,
    )  # fmt: skip
    of_samples = shift is not None and shift.dim() == 2
    dweight, dbias, *of_channels = (sums[:2] if of_samples else sums).sum(dim=1)
    dshift = None
    if shift is not None:
        dshift = (sums[2] if of_samples else of_channels[0][: ctx.of_x]).to(shift.dtype)
    return (
        dx,
        dx if ctx.branched else None,
        dskip if ctx.skipped else None,
        dshift,
        None,
        dweight.to(weight.dtype),
        dbias.to(bias.dtype),
        None,
        None,
        None,
    )


normalize.register_autograd(_gradients, setup_context=_setup)
