"""Group normalisation: the kernels against torch's own functions in float64."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from boss_core.networks.ncsnpp import ResidualBlock, UnbiasedConv2d
from boss_core.networks.normalization import group_norm
from tests.conftest import ROOT

# (B, C, H, W) and groups: one program an image or several, group sizes and pixels that are no
# powers of two, one group.
CASES = [((2, 64, 32, 32), 16), ((1, 192, 32, 32), 32), ((3, 24, 5, 7), 4), ((2, 6, 4, 4), 1)]


def errors(device: str) -> list[float]:
    """Relative errors of the result and of all gradients, for all cases."""
    from boss_core.networks.normalization_triton import normalize

    torch.manual_seed(0)
    found = []
    for shape, groups in CASES:
        for shifted in (False, True):
            x = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
            shift = torch.randn(shape[:2], device=device) if shifted else None
            weight, bias = torch.randn(2, shape[1], device=device).unbind()
            inputs = [x, weight, bias] + ([] if shift is None else [shift])
            for tensor in inputs:
                tensor.requires_grad_()
            exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
            y = normalize(x, shift, weight, bias, groups, 1e-6, shifted)[0]
            assert y.is_contiguous(memory_format=torch.channels_last)
            moved = exact[0] + exact[3][:, :, None, None] if shifted else exact[0]
            expected = F.group_norm(moved, groups, exact[1], exact[2], 1e-6)
            expected = F.silu(expected) if shifted else expected
            dy = torch.randn_like(y)
            pairs = zip(
                [y, *torch.autograd.grad(y, inputs, dy)],
                [expected, *torch.autograd.grad(expected, exact, dy.double())],
                strict=True,
            )
            found += [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs]
    return found


def test_kernels_interpreted() -> None:
    """Triton's interpreter runs the kernels on a CPU; it has to be asked for before the import."""
    pytest.importorskip("triton")
    code = "from tests.test_normalization import errors; print(max(errors('cpu')))"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 2e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_on_a_gpu() -> None:
    pytest.importorskip("triton")
    assert max(errors("cuda")) < 2e-6


def test_shift_is_added_before_the_normalisation() -> None:
    norm = nn.GroupNorm(2, 6)
    x, shift = torch.randn(3, 6, 4, 4), torch.randn(3, 6)
    expected = F.silu(norm(x + shift.view(3, 6, 1, 1)))
    torch.testing.assert_close(group_norm(x, norm, shift=shift), expected)


def test_a_bias_that_the_normalisation_adds() -> None:
    """The block against the formula with a biased convolution."""
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, 4, True, None)
    x, embedding = torch.randn(2, 8, 6, 6), torch.randn(2, 4)
    conv, dense = block.Conv_0, block.Dense_0
    assert isinstance(conv, UnbiasedConv2d)
    assert conv.bias is not None
    h = F.conv2d(F.silu(block.GroupNorm_0(x)), conv.weight, conv.bias, padding=1)
    h = block.Conv_1(F.silu(block.GroupNorm_1(h + dense(embedding)[:, :, None, None])))
    torch.testing.assert_close(block(x, embedding), (x + h) / 2**0.5)
