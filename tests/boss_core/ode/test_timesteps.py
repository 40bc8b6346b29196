"""Baseline grids against their published formulas."""

import numpy as np
import pytest

from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import (
    karras,
    nearest_indices,
    quadratic,
    shifted,
    uniform,
    union,
    validate_timesteps,
)


@pytest.mark.parametrize("grid", [uniform, karras, quadratic, shifted])
@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_every_grid_is_valid(grid, n: int) -> None:
    assert len(validate_timesteps(grid(n))) == n + 1


def test_uniform_times_are_the_decimals_that_a_reader_writes() -> None:
    """Every one, and its noise level, of two places: exports are copied by hand, too."""
    assert uniform(100).tolist() == [float(f"{k}e-2") for k in range(101)]
    sigmas = Schedule(timesteps=tuple(uniform(100))).sigmas
    assert [repr(sigma) for sigma in sigmas] == [repr(float(f"{100 - k}e-2")) for k in range(101)]


def test_karras_is_edms_formula_in_noise_to_signal() -> None:
    times = karras(10)
    sigma = (1 - times[1:-1]) / times[1:-1]
    i = np.arange(1, 10) / 9  # of 10 levels; the last step goes from 0.002 to the data
    expected = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigma, expected, rtol=1e-12)


def test_shift_of_three_moves_noise_level_083_to_0936() -> None:
    # The figure of diffusers' scheduler with shift = 3.
    times = shifted(6, shift=3.0)
    assert 1 - times[1] == pytest.approx(3 * (5 / 6) / (1 + 2 * (5 / 6)))
    assert 1 - times[1] == pytest.approx(0.9375, abs=1e-9)
    np.testing.assert_allclose(shifted(6, shift=1.0), uniform(6))


def test_quadratic_steps_shrink_towards_the_data() -> None:
    np.testing.assert_allclose(quadratic(4), [0, 7 / 16, 12 / 16, 15 / 16, 1])


@pytest.mark.parametrize("n", range(1, 21))
def test_uniform_steps_fit_a_grid_they_do_not_divide(n: int) -> None:
    # 3, 6, 7, 8 and 9 steps on 100 points is where the published code crashes.
    indices = nearest_indices(uniform(100), uniform(n))
    assert len(indices) == n + 1
    assert indices[0] == 0
    assert indices[-1] == 100
    assert np.abs(np.array(indices) / 100 - uniform(n)).max() <= 0.005 + 1e-12


def test_steps_from_an_image_with_some_noise_fit_a_grid() -> None:
    assert nearest_indices(uniform(10), [0.42, 0.69, 1.0]) == (4, 7, 10)
    with pytest.raises(ValueError, match=r"run from 0\.1 to 1\.0; 0 to 1 needed"):
        nearest_indices(np.linspace(0.1, 1.0, 10), [0.42, 0.69, 1.0])


def test_too_coarse_a_grid_is_an_error() -> None:
    with pytest.raises(ValueError, match="8 steps do not fit on a grid of 5"):
        nearest_indices(uniform(5), uniform(8))
    with pytest.raises(ValueError, match="steps: 0"):
        uniform(0)


def test_union() -> None:
    assert union([(0, 3, 10), (0, 5, 10)]) == (0, 3, 5, 10)
