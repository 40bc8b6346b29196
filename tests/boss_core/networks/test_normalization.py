"""Group normalisation: the kernels against torch's own functions in float64."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from boss_core.networks.ncsnpp import ResidualBlock, UnbiasedConv2d, UpsamplingConv2d
from boss_core.networks.normalization import Summands, add_and_norm, group_norm
from tests.helpers.checkout import ROOT
from tests.helpers.kernels import errors, network_errors
from tests.helpers.rectified_flow import small


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run on the GPU itself, below")
def test_kernels_interpreted() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.kernels"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    of_kernels, of_network = map(float, done.stdout.split())
    assert of_kernels < 2e-6
    assert of_network < 2e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_on_a_gpu() -> None:
    pytest.importorskip("triton")
    assert max(errors("cuda")) < 2e-6
    assert max(network_errors("cuda")) < 2e-5


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
    conv, (weight, bias) = block.Conv_0, block.Dense_0()
    shift = F.linear(embedding, weight, bias) + conv.bias
    assert isinstance(conv, UnbiasedConv2d)
    assert conv.bias is not None
    h = F.conv2d(F.silu(block.GroupNorm_0(x)), conv.weight, conv.bias, padding=1)
    h = F.silu(block.GroupNorm_1(h + F.linear(embedding, weight, bias)[:, :, None, None]))
    h = F.conv2d(h, block.Conv_1.weight, block.Conv_1.bias, padding=1)
    features, found = block(x, shift)
    assert features is x
    torch.testing.assert_close(found.total(), (x + h) / 2**0.5)


def test_a_bias_before_the_normalisation_is_one_of_the_time_embedding() -> None:
    """Moved from the convolution to the layer of the embedding it changes nothing, taken away it
    does: in all blocks of a network at once."""
    network = small("ddpmpp").double()
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) > 4
    x, t = torch.randn(2, 1, 8, 8).double(), torch.rand(2).double()
    with torch.no_grad():
        for block in blocks:
            block.Conv_0.bias.normal_()
        before = network(x, t)
        for block in blocks:
            block.Dense_0.bias += block.Conv_0.bias
            block.Conv_0.bias.zero_()
        torch.testing.assert_close(network(x, t), before)
        blocks[1].Dense_0.bias.zero_()
        assert (network(x, t) - before).abs().max() > 1e-3


def test_sum_and_skip_before_the_normalisation() -> None:
    norm = nn.GroupNorm(2, 10)
    x, branch = torch.randn(2, 3, 6, 4, 4).unbind()
    skip, bias = torch.randn(3, 4, 4, 4), torch.randn(6)
    features, normal = add_and_norm(Summands(x, branch, bias, 0.5), norm, skip=skip)
    expected = torch.cat([(x + branch + bias.view(6, 1, 1)) / 2, skip], dim=1)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(normal, F.silu(norm(expected)))


def test_convolution_of_nearest_neighbours() -> None:
    torch.manual_seed(0)
    convolution = UpsamplingConv2d(5, 4, 3, padding=1).double()
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    found = convolution(x)
    expected = F.conv2d(F.interpolate(x, scale_factor=2), convolution.weight, padding=1)
    torch.testing.assert_close(found, expected)
    inputs, along = [x, convolution.weight], torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, along), torch.autograd.grad(expected, inputs, along)
    )
