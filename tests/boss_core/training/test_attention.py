"""Gradients of attention that are right: without cuDNN's kernels while a network trains, or in one
layout, whatever a block hands back."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from boss_core.training.attention import whole_attention_gradients
from boss_core.training.loop import train
from boss_core.training.settings import TrainingSettings

TORCHS_OWN = functional.scaled_dot_product_attention


class SingleBlock(nn.Module):
    """As FLUX's: attention and MLP side by side, so that attention's gradient is a part of a wider
    tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.mlp, self.out = nn.Linear(32, 96), nn.Linear(32, 64), nn.Linear(96, 32)

    def forward(self, x: Tensor) -> Tensor:
        heads = [p.unflatten(-1, (4, 8)).transpose(1, 2) for p in self.qkv(x).chunk(3, -1)]
        self.found = functional.scaled_dot_product_attention(*heads)
        attended = self.found.transpose(1, 2).flatten(2)
        return x + self.out(torch.cat([attended, self.mlp(x).relu()], -1))


@pytest.fixture
def block() -> SingleBlock:
    torch.manual_seed(0)
    return SingleBlock()


def gradients(block: SingleBlock, run: Callable[[Tensor], Tensor]) -> list[Tensor]:
    x = torch.linspace(-1, 1, 2 * 16 * 32).reshape(2, 16, 32)
    block.zero_grad()
    run(x).square().mean().backward()
    return [p.grad.clone() for p in block.parameters() if p.grad is not None]


def layouts(block: SingleBlock) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of what attention returned, and of the gradient that reached its own node."""
    found = block(torch.randn(2, 16, 32))
    node = block.found.grad_fn
    if "AsReturned" in type(node).__name__:
        node = node.next_functions[0][0]
    arrived: list[tuple[int, ...]] = []
    node.register_prehook(lambda given: arrived.append(given[0].stride()))
    found.square().mean().backward()
    return block.found.stride(), arrived[0]


def test_the_gradient_has_the_layout_of_what_attention_returned(block: SingleBlock) -> None:
    returned, arrived = layouts(block)
    assert arrived != returned  # else the rest proves nothing
    with whole_attention_gradients():
        returned, arrived = layouts(block)
    assert arrived == returned


@pytest.mark.parametrize("way", ["plain", "checkpointed", "compiled", "both"])
def test_it_is_the_same_gradient(block: SingleBlock, way: str) -> None:
    expected = gradients(block, block)
    if way in ("compiled", "both"):
        # One graph: what is around attention does not break it.
        block.compile(backend="aot_eager", fullgraph=way == "compiled")

    def checkpointed(x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=False)

    with whole_attention_gradients():
        found = gradients(block, block if way in ("plain", "compiled") else checkpointed)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_one_within_another(block: SingleBlock) -> None:
    with whole_attention_gradients():
        with whole_attention_gradients():
            layouts(block)
        returned, arrived = layouts(block)
        assert arrived == returned
    assert functional.scaled_dot_product_attention is TORCHS_OWN


def fail() -> None:
    with whole_attention_gradients():
        assert functional.scaled_dot_product_attention is not TORCHS_OWN
        raise KeyError


def test_attention_is_given_back_after_a_failure() -> None:
    with pytest.raises(KeyError):
        fail()
    assert functional.scaled_dot_product_attention is TORCHS_OWN


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_cudnns_kernels_are_left_out_while_a_network_trains(before: bool, fails: bool) -> None:
    settings = TrainingSettings(
        iterations=2, batch_size=1, learning_rate=1e-3, learning_rate_schedule="cosine", warmup=0,
        gradient_clip=1.0, ema_decay=0.9,
    )  # fmt: skip
    seen = []

    def loss(network: nn.Module, step: int, share: object) -> Tensor:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        if fails:
            raise ArithmeticError
        return network(torch.ones(1, 2)).square().mean()

    of_process = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before)
    try:
        if fails:
            with pytest.raises(ArithmeticError):
                train(nn.Linear(2, 1), loss, settings)
        else:
            train(nn.Linear(2, 1), loss, settings)
        assert not any(seen)
        assert torch.backends.cuda.cudnn_sdp_enabled() is before
    finally:
        torch.backends.cuda.enable_cudnn_sdp(of_process)
