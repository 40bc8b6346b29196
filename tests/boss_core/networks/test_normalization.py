"""Group normalisation: the kernels against torch's own functions in float64."""

import copy
import importlib
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boss_core.networks import normalization
from boss_core.networks.ncsnpp import ResidualBlock, UnbiasedConv2d, UpsamplingConv2d, _shifts
from boss_core.networks.normalization import Summands, add_and_norm, group_norm
from tests.helpers.checkout import ROOT
from tests.helpers.rectified_flow import small

# (B, C, H, W), groups, and the channels of x where the others are a skip's: one program an image or
# several, group sizes and pixels that are no powers of two, one group.
CASES = [
    ((2, 64, 32, 32), 16, 48),
    ((1, 192, 32, 32), 32, 96),
    ((3, 24, 5, 7), 4, 18),
    ((2, 6, 4, 4), 1, 6),
]
# What is added to x, and whether a skip follows.
KINDS = [("", False), ("shift of samples", False), ("branch", False), ("branch", True)]
FACTOR = 0.7


def errors(device: str) -> list[float]:
    """Relative errors of the results and of all gradients, for all cases."""
    torch.manual_seed(0)
    return [
        error
        for shape, groups, of_x in CASES
        for added, skips in KINDS
        if of_x < shape[1] or not skips
        for error in errors_of(shape, groups, of_x if skips else shape[1], added, device)
    ]


def errors_of(
    shape: tuple[int, int, int, int], groups: int, of_x: int, added: str, device: str
) -> list[float]:
    from boss_core.networks.normalization_triton import normalize

    def images(channels: int) -> Tensor:
        tensor = torch.randn((shape[0], channels, *shape[2:]), device=device)
        return tensor.to(memory_format=torch.channels_last)

    inputs = {"x": images(of_x)}
    if added == "branch":
        inputs["branch"] = images(of_x)
    if of_x < shape[1]:
        inputs["skip"] = images(shape[1] - of_x)
    if added:
        shapes = {"branch": (of_x,), "shift of samples": (shape[0], of_x)}
        inputs["shift"] = torch.randn(shapes[added], device=device)
    inputs |= {name: torch.randn(shape[1], device=device) for name in ("weight", "bias")}
    factor = FACTOR if added == "branch" else 1.0
    exact = {name: tensor.double().requires_grad_() for name, tensor in inputs.items()}
    for tensor in inputs.values():
        tensor.requires_grad_()

    total, y, *_ = normalize(
        *(inputs.get(name) for name in ("x", "branch", "skip", "shift")),
        factor, inputs["weight"], inputs["bias"], groups, 1e-6, bool(added),
    )  # fmt: skip
    expected = exact["x"] + exact.get("branch", 0.0)
    if added:
        expected = expected + exact["shift"].view(-1, of_x, 1, 1)
    expected = torch.cat([expected * factor, *([exact["skip"]] if "skip" in exact else [])], dim=1)
    normal = F.group_norm(expected, groups, exact["weight"], exact["bias"], 1e-6)
    outputs, exact_outputs = [y], [F.silu(normal) if added else normal]
    if added == "branch":
        outputs, exact_outputs = [total, y], [expected, *exact_outputs]
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in outputs)
    along = [torch.randn_like(tensor) for tensor in outputs]
    found = [*outputs, *torch.autograd.grad(outputs, list(inputs.values()), along)]
    wanted = torch.autograd.grad(
        exact_outputs, list(exact.values()), [tensor.double() for tensor in along]
    )
    pairs = zip(found, [*exact_outputs, *wanted], strict=True)
    return [((ours - theirs).norm() / theirs.norm()).item() for ours, theirs in pairs]


def network_errors(device: str) -> list[float]:
    """Relative errors of a network and of the gradients of its parameters, in float32 against
    float64, which no kernel takes."""
    if device == "cpu":  # of a process of its own, where the kernels are interpreted
        normalization._fits = lambda x: x.dtype == torch.float32
        normalization.normalize = importlib.import_module(
            f"{normalization.__name__}_triton"
        ).normalize
    network = small("ddpmpp").to(device)
    x, t = torch.randn(2, 1, 8, 8, device=device), torch.rand(2, device=device)
    found = []
    for dtype in (torch.float32, torch.float64):
        of_dtype = copy.deepcopy(network).to(dtype)
        with torch.backends.cudnn.flags(allow_tf32=False):
            v = of_dtype(x.to(dtype), t.to(dtype))
            found.append([v, *torch.autograd.grad(v.square().sum(), list(of_dtype.parameters()))])
    return [
        ((ours - theirs).norm() / theirs.norm()).item()
        for ours, theirs in zip(*found, strict=True)
        if theirs.norm() > 1e-6  # the bias of the keys has no gradient
    ]


def test_kernels_interpreted() -> None:
    """Triton's interpreter runs the kernels on a CPU; it has to be asked for before the import."""
    pytest.importorskip("triton")
    code = (
        "from tests.boss_core.networks.test_normalization import errors, network_errors\n"
        "print(max(errors('cpu')), max(network_errors('cpu')))"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
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
    assert isinstance(conv, UnbiasedConv2d)
    assert conv.bias is not None
    h = F.conv2d(F.silu(block.GroupNorm_0(x)), conv.weight, conv.bias, padding=1)
    h = F.silu(block.GroupNorm_1(h + F.linear(embedding, weight, bias)[:, :, None, None]))
    h = F.conv2d(h, block.Conv_1.weight, block.Conv_1.bias, padding=1)
    features, found = block(x, *_shifts([block], embedding))
    assert features is x
    torch.testing.assert_close(found.total(), (x + h) / 2**0.5)


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
