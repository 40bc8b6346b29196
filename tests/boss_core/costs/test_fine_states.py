"""The states of fine trajectories."""

import numpy as np
import pytest
import torch

from boss_core.costs.fine_states import (
    NOISES,
    empty_states,
    fitting_noises,
    roll_out_states,
)
from boss_core.costs.fit import FEWEST_NOISES
from boss_core.costs.matrix import CostSum
from boss_core.costs.measure import measure_costs
from boss_core.ode.noise import COSTS, NoiseSource
from boss_core.ode.timesteps import uniform

GRID = uniform(10)


def grows(x, t, labels=None):
    rate = 1.0 if labels is None else (1 + labels).view(-1, 1).to(x)
    return rate * x


def test_states_are_eulers_on_a_linear_flow() -> None:
    noise = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).double()
    seen: list[int] = []
    states = roll_out_states(grows, noise, GRID, batch_size=4, on_step=seen.append)
    expected = np.stack([1.1**k * noise.numpy() for k in range(11)])
    np.testing.assert_allclose(states.numpy(), expected, rtol=1e-12)
    assert sum(seen) == 70
    exact = roll_out_states(grows, noise, GRID, reference="rk45", batch_size=4)
    np.testing.assert_allclose(exact[-1].numpy(), np.e * noise.numpy(), rtol=1e-5)


@pytest.mark.parametrize("reference", ["euler", "heun"])
@pytest.mark.parametrize("batch_size", [3, 100])
def test_those_kept_while_costs_are_measured_are_the_same(reference: str, batch_size: int) -> None:
    source = NoiseSource((3,), seed=0, classes=2)
    noise, labels = source.draw(range(20), COSTS)
    total = CostSum(GRID, reference=reference)
    states = empty_states(noise, 8, GRID)
    measure_costs(total, grows, source, samples=20, batch_size=batch_size, states=states)
    again = roll_out_states(
        grows, noise[:8], GRID, reference=reference, batch_size=8, labels=labels[:8]
    )
    torch.testing.assert_close(states, again)
    plain = CostSum(GRID, reference=reference)
    measure_costs(plain, grows, source, samples=20, batch_size=batch_size)
    assert (plain.result().cost == total.result().cost).all()


def test_as_many_noises_as_fit() -> None:
    assert fitting_noises((3, 32, 32), 100, 300) == NOISES
    assert fitting_noises((3, 32, 32), 100, 50) == 50
    assert fitting_noises((3, 32, 32), 100, 3) == FEWEST_NOISES
    assert fitting_noises((16, 128, 128), 50, 300) == 20  # 53 MB each
