"""The kernels of the group normalisation against torch's own functions in float64.

`python -m tests.helpers.kernels` prints the largest errors of Triton's interpreter, which runs
them on a CPU when it is asked to before the import (TRITON_INTERPRET=1).
"""

import copy
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

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
    from tests.helpers.rectified_flow import small

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


def main() -> None:
    """As on a GPU: what decides by the device takes the kernels."""
    with mock.patch("torch.cuda.is_available", return_value=True):
        from boss_core.networks import normalization
    of_kernels = max(errors("cpu"))
    used = mock.patch.object(normalization, "normalize", wraps=normalization.normalize)
    with mock.patch.object(torch.Tensor, "is_cuda", True), used as kernels:
        of_network = max(network_errors("cpu"))
    assert kernels.call_count > 10
    print(of_kernels, of_network)


if __name__ == "__main__":
    main()
