"""The training loop against optimisers written out by hand."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from boss_core.errors import InputError
from boss_core.training.loop import learning_rate_factor, train
from boss_core.training.randomness import BatchShare
from boss_core.training.settings import TrainingSettings

CPU = torch.device("cpu")


def settings(**change) -> TrainingSettings:
    values = {
        "iterations": 30,
        "batch_size": 8,
        "learning_rate": 0.1,
        "learning_rate_schedule": "constant",
        "warmup": 0,
        "gradient_clip": 1e9,
        "ema_decay": 0.9,
    }
    return TrainingSettings(**(values | change))


def scalar(value: float = 0.0) -> nn.Module:
    module = nn.Module()
    module.w = nn.Parameter(torch.tensor(value, dtype=torch.float64))
    return module


def test_is_adam_with_clipping_warmup_and_weight_average_by_hand() -> None:
    chosen = settings(warmup=5, learning_rate_schedule="cosine", gradient_clip=0.5)

    def gradient(w: float, step: int) -> float:
        return 2 * (w - 3.0) * (1 + 0.1 * step)

    def loss(network, step, share):
        return (network.w - 3.0) ** 2 * (1 + 0.1 * step)

    w = average = m = s = 0.0
    by_hand = []
    for step in range(30):
        if step < 5:
            rate = 0.1 * (step + 1) / 6
        else:
            rate = 0.1 * 0.5 * (1 + math.cos(math.pi * (step - 5) / 25))
        g = gradient(w, step)
        by_hand.append(((w - 3.0) ** 2 * (1 + 0.1 * step), abs(g), rate))
        g *= min(1.0, 0.5 / (abs(g) + 1e-6))
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
        corrected = (m / (1 - 0.9 ** (step + 1))) / (
            math.sqrt(s / (1 - 0.999 ** (step + 1))) + 1e-8
        )
        w -= rate * corrected
        decay = min(0.9, (2 + step) / (11 + step))
        average = decay * average + (1 - decay) * w

    network = scalar()
    trained = train(network, loss, chosen, log_every=7)
    assert float(network.w) == pytest.approx(w, rel=1e-6)
    assert float(trained.network.w) == pytest.approx(average, rel=1e-6)
    assert [row["step"] for row in trained.curve] == [7, 14, 21, 28, 30]
    for row, start in zip(trained.curve, (0, 7, 14, 21, 28), strict=True):
        losses, norms, rates = zip(*by_hand[start : int(row["step"])], strict=True)
        assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert row["gradient_norm"] == pytest.approx(max(norms), rel=1e-5)
        assert row["learning_rate"] == pytest.approx(rates[-1])


def test_learning_rate() -> None:
    cosine = settings(iterations=100, warmup=10, learning_rate_schedule="cosine")
    factors = [learning_rate_factor(step, cosine) for step in range(100)]
    assert factors[10] == 1.0 == max(factors)
    assert factors[55] == pytest.approx(0.5)
    assert np.all(np.diff(factors[:11]) > 0)
    assert np.all(np.diff(factors[10:]) < 0)
    constant = settings(warmup=2)
    assert [learning_rate_factor(k, constant) for k in (0, 1, 2, 29)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 1]
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused_with_its_step(bad: float) -> None:
    def loss(network, step, share):
        return network.w**2 * (bad if step == 17 else 1.0)

    with pytest.raises(InputError, match=r"at step 17 of 30; a learning_rate below 0\.1"):
        train(scalar(1.0), loss, settings(), log_every=10)


def test_validation_sees_the_average_and_lands_in_the_curve() -> None:
    seen = []

    def validate(network):
        seen.append(float(network.w))
        return {"validation_loss": seen[-1]}

    trained = train(
        scalar(), lambda n, *_: (n.w - 1) ** 2, settings(), validate=validate, log_every=10
    )
    assert [row["validation_loss"] for row in trained.curve] == seen
    assert seen[-1] == float(trained.network.w)


def test_only_parameters_that_need_gradients_move() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    network[0].requires_grad_(False)
    frozen = network[0].weight.clone()
    moving = network[1].weight.clone()
    x = torch.ones(4, 2)
    trained = train(network, lambda n, *_: n(x).square().mean(), settings()).network
    assert torch.equal(trained[0].weight, frozen)
    assert not torch.equal(trained[1].weight, moving)


def test_bfloat16_trains_float32_weights_near_those_of_float32() -> None:
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 1))
    x = torch.randn(64, 4)
    seen = []

    def loss(network, step, share):
        found = network(x)
        seen.append(found.dtype)
        return (found - x.sum(dim=1, keepdim=True)).square().mean()

    def validate(network):
        return {"validation_loss": float(loss(network, 0, BatchShare()))}

    chosen = settings(iterations=60, learning_rate=1e-2)
    exact, rounded = (
        train(copy.deepcopy(start), loss, chosen, precision=p, validate=validate, log_every=20)
        for p in ("float32", "bfloat16")
    )
    assert {p.dtype for p in rounded.network.parameters()} == {torch.float32}
    assert set(seen) == {torch.float32}
    for row, other in zip(exact.curve, rounded.curve, strict=True):
        assert 0 < abs(row["loss"] / other["loss"] - 1) < 0.05
        assert abs(row["validation_loss"] / other["validation_loss"] - 1) < 0.05


def test_running_statistics_are_averaged_too() -> None:
    network = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    mean, average, x = 0.0, 0.0, torch.arange(4.0)[:, None]

    def loss(network, step, share):
        return network(x + step).square().mean()

    for step in range(5):
        mean += 0.1 * (1.5 + step - mean)  # the layer's own momentum
        decay = min(0.9, (2 + step) / (11 + step))
        average = decay * average + (1 - decay) * mean
    trained = train(network, loss, settings(iterations=5)).network
    assert float(trained[0].running_mean) == pytest.approx(average, rel=1e-5)


def test_what_layers_draw_depends_on_seed_and_step_and_leaves_no_trace() -> None:
    drawn = {}

    def loss(network, step, share):
        drawn[step] = float(torch.rand(()))
        return network.w**2

    def run(seed: int, iterations: int) -> dict[int, float]:
        drawn.clear()
        torch.manual_seed(seed)
        expected = torch.rand(2)
        torch.manual_seed(seed)
        train(scalar(1.0), loss, settings(iterations=iterations))
        assert torch.equal(torch.rand(2), expected)
        return dict(drawn)

    first = run(0, 5)
    assert len({*first.values(), *run(1, 5).values()}) == 10
    assert run(0, 3) == {step: first[step] for step in range(3)}
