"""cuDNN's attention is left out while a network trains, and given back afterwards."""

import pytest
import torch
from torch import nn

from boss_core.training.loop import train
from boss_core.training.settings import TrainingSettings


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_while_it_trains(before: bool, fails: bool) -> None:
    settings = TrainingSettings(
        iterations=2, batch_size=1, learning_rate=1e-3, learning_rate_schedule="cosine", warmup=0,
        gradient_clip=1.0, ema_decay=0.9,
    )  # fmt: skip
    seen = []

    def loss(network: nn.Module, step: int, share: object) -> torch.Tensor:
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
