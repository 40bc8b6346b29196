"""What cannot be searched is refused before the network is called."""

from pathlib import Path
from typing import Any

import pytest

from boss_core.costs.matrix import estimate_cost_matrix
from boss_core.errors import InputError
from boss_core.ode.noise import NoiseSource, sample_noise
from boss_core.ode.timesteps import uniform
from boss_core.search.distances import sliced_wasserstein
from boss_core.search.find import find_steps
from boss_core.search.settings import SearchSettings
from tests.helpers.costs import smooth

MATRIX = estimate_cost_matrix(smooth, sample_noise(range(9), (4,), 0), uniform(20), batch_size=9)


@pytest.mark.parametrize(
    ("settings", "budget", "says"),
    [
        ({"objective": "l1"}, 3, "objective: 'l1'; l2_squared, l2, minimax, gits, oss"),
        (
            {"solver": "heun", "objective": "auto"},
            4,
            "solver: 'heun'; euler or ab2 or multistep needed",
        ),
        ({"solver": "ab2", "objective": "lpips"}, 3, "solver: ab2 with objective lpips; euler"),
        ({"objective": "refine"}, 0, r"budget: 0; 1\.\.20"),
        ({"objective": "auto"}, 21, r"budget: 21; 1\.\.20"),
        ({"objective": "auto", "samples": 8}, 3, "samples: 8; at least 20"),
        ({"objective": "lpips", "samples": 7, "lpips": Path()}, 3, "samples: 7; at least 20"),
    ],
)
def test_what_cannot_be_searched_calls_no_network(
    settings: dict[str, Any], budget: int, says: str
) -> None:
    def never(x, t):
        raise AssertionError("the network was called")

    with pytest.raises(InputError, match=says):
        find_steps(
            never, MATRIX, [budget], SearchSettings(**settings), NoiseSource((4,), 0),
            sliced_wasserstein,
        )  # fmt: skip


@pytest.mark.parametrize("objective", ["l2", "oss", "refine", "auto"])
def test_every_objective_has_steps_for_the_ends_of_the_budgets(objective: str) -> None:
    settings = SearchSettings(solver="ab2", objective=objective, samples=20, batch_size=20)
    found = dict(
        find_steps(smooth, MATRIX, [1, 20], settings, NoiseSource((4,), 3), sliced_wasserstein)
    )
    assert found[1].indices == (0, 20)
    assert found[20].indices == tuple(range(21))
