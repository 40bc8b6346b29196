"""Updates recorded once and replayed."""

import numpy as np
import pytest
import torch
from torch import nn

from boss_core.training.loop import train
from boss_core.training.randomness import device_generator
from boss_core.training.settings import TrainingSettings


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_replayed_update_is_the_one_that_it_recorded() -> None:
    gpu = torch.device("cuda")
    chosen = TrainingSettings(
        iterations=40, batch_size=8, learning_rate=0.01, warmup=10,
        learning_rate_schedule="cosine", gradient_clip=0.5, ema_decay=0.9, weight_decay=0.1,
    )  # fmt: skip
    rows = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 4)).to(gpu)

        def loss(network, step, share):
            draw = device_generator(0, step, gpu)
            x = torch.randn((8, 4), generator=draw, device=gpu)
            return (network(x) - x.flip(-1)).square().mean()

        trained = train(network, loss, chosen, compile=compiled, log_every=5)
        flat = torch.cat([p.detach().flatten() for p in trained.network.parameters()])
        rows.append((flat, [(row["loss"], row["gradient_norm"]) for row in trained.curve]))
    (plain, curve), (replayed, replayed_curve) = rows
    assert curve[0][1] > 0.5  # clipped
    torch.testing.assert_close(replayed, plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(replayed_curve, curve, rtol=1e-4)
