"""The training loop against optimisers written out by hand."""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from boss_core.errors import InputError
from boss_core.training.loop import learning_rate_factor, train
from boss_core.training.randomness import BatchShare
from boss_core.training.resume import Checkpoints
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


def test_a_loss_may_go_backward_itself_part_by_part() -> None:
    """As one backward of the sum does; in float64, where the order of a sum hardly counts."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1)).double()
    parts = torch.randn(4, 5, 3).double()

    def loss(network, x, step):
        return (network(x + step / 10) - x.sum(dim=1, keepdim=True)).square().mean() / 4

    def at_once(network, step, share):
        return torch.stack([loss(network, x, step) for x in parts]).sum()

    def in_parts(network, step, share):
        total = torch.zeros(())
        for x in parts:
            one = loss(network, x, step)
            one.backward()
            total = total + one.detach()
        return total

    chosen = settings(gradient_clip=0.5)
    one, other = (train(copy.deepcopy(start), of, chosen) for of in (at_once, in_parts))
    for weight, expected in zip(other.network.parameters(), one.network.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-9, atol=1e-12)
    assert other.curve[0] == pytest.approx(one.curve[0], rel=1e-6)
    assert other.curve[0]["gradient_norm"] > 0.5


def test_a_loss_that_depends_on_no_weight_is_refused() -> None:
    with pytest.raises(InputError, match="no parameter has a gradient at step 0"):
        train(scalar(), lambda network, *_: torch.tensor(1.0), settings())


def test_average_and_checkpoints_hold_what_trains_alone(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(200, 200), nn.BatchNorm1d(200), nn.Linear(200, 1))
    network[0].requires_grad_(False)
    x = torch.randn(4, 200)
    kept = Checkpoints(tmp_path, 10, {}, say=lambda line: None)
    trained = train(network, lambda n, *_: n(x).square().mean(), settings(), checkpoints=kept)
    assert trained.network[0].weight is network[0].weight
    assert trained.network[2].weight is not network[2].weight
    last = max(tmp_path.iterdir())
    with safe_open(last, framework="pt") as file:
        names = set(file.keys())
    assert {n.partition(".")[2] for n in names if n.startswith(("network.", "average."))} == {
        *(f"1.{name}" for name in network[1].state_dict()),
        *(f"2.{name}" for name in network[2].state_dict()),
    }
    assert last.stat().st_size < network[0].weight.numel()  # of its 4 bytes each

    # Other weights that do not train are another run.
    with torch.no_grad():
        network[0].weight += 1.0
    said: list[str] = []
    again = dataclasses.replace(kept, say=said.append)
    train(network, lambda n, *_: n(x).square().mean(), settings(), checkpoints=again)
    assert "of another run" in said[0]


def test_the_parameters_of_an_adapter_train_alone_inside_a_larger_network() -> None:
    """A module that holds the same parameters is all that is copied."""
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)).requires_grad_(False)
    adapter = nn.ParameterList([network[1].weight.requires_grad_(True)])
    x = torch.ones(2, 4)
    start = network[1].weight.detach().clone()
    trained = train(adapter, lambda *_: network(x).square().mean(), settings()).network
    assert len(list(trained.parameters())) == 1
    assert not torch.equal(network[1].weight, start)  # as the last step left it
    assert not torch.equal(trained[0], network[1].weight)  # the average
