"""Denoisers as velocities: against the closed forms of Gaussian data and of mixtures."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from boss_core.bellman.recursion import optimal_paths
from boss_core.costs.matrix import estimate_cost_matrix
from boss_core.errors import InputError
from boss_core.ode.denoiser import velocity_from_denoiser
from boss_core.ode.noise import sample_noise
from boss_core.ode.solvers import euler, heun
from boss_core.ode.timesteps import karras, validate_timesteps

MEAN, WIDTH = 0.3, 0.5


def gaussian(y: Tensor, sigma: Tensor) -> Tensor:
    """D(y; sigma) of data N(0.3, 0.5^2): the posterior mean."""
    s = sigma.view(-1, 1)
    return (WIDTH**2 * y + s**2 * MEAN) / (WIDTH**2 + s**2)


def gaussian_velocity(x: Tensor, t: Tensor) -> Tensor:
    """Of the same data: x_t ~ N(t m, q), and v is the mean's derivative plus cov(v, x_t) / q
    times the deviation. Nothing of it passes through a denoiser."""
    t = t.view(-1, 1)
    q = t**2 * WIDTH**2 + (1 - t) ** 2
    return MEAN + (t * WIDTH**2 - (1 - t)) / q * (x - t * MEAN)


CENTRES = torch.tensor([-1.0, 0.2, 1.5], dtype=torch.float64)


def mixture(y: Tensor, sigma: Tensor) -> Tensor:
    """D(y; sigma) of three equally likely points on a line."""
    weights = (-((y[..., None] - CENTRES) ** 2) / (2 * sigma.view(-1, 1, 1) ** 2)).softmax(-1)
    return (weights * CENTRES).sum(-1)


def mixture_velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[x_1 - x_0 | x_t = x], over the three points that x may come from."""
    t = t.view(-1, 1, 1)
    noise = (x[..., None] - t * CENTRES) / (1 - t)
    return ((-(noise**2) / 2).softmax(-1) * (CENTRES - noise)).sum(-1)


@pytest.mark.parametrize(
    ("denoiser", "expected"), [(gaussian, gaussian_velocity), (mixture, mixture_velocity)]
)
def test_equals_the_closed_form_within_the_range_of_sigma(denoiser, expected) -> None:
    t = torch.tensor([1 / 81, 0.02, 0.3, 0.5, 0.9, 1 / 1.002], dtype=torch.float64)
    x = sample_noise(range(6), (50,), seed=0).double()
    found = velocity_from_denoiser(denoiser)(x, t)
    torch.testing.assert_close(found, expected(x, t), rtol=1e-9, atol=1e-9)


def test_is_finite_and_near_the_closed_form_at_both_ends() -> None:
    """Outside the range an error remains: by the closed form at most c^2 / sigma_max = 0.003 at
    t = 0, where noise alone is taken for noise and data, and, to first order, sigma_min
    (1 + 1 / c^2) = 0.01 at t = 1, where the noise stays; both times states of size 1."""
    x = sample_noise(range(1), (1000,), seed=0).double()
    velocity = velocity_from_denoiser(gaussian)
    for time, bound in ((0.0, 0.0035), (0.006, 0.0035), (0.999, 0.01), (1.0, 0.01)):
        t = torch.full((1,), time, dtype=torch.float64)
        error = (velocity(x, t) - gaussian_velocity(x, t)).square().mean().sqrt()
        assert 0 < float(error) < bound
    # The denoiser never sees a noise level outside its range, and its input has that noise.
    seen = []
    velocity = velocity_from_denoiser(lambda y, sigma: seen.append((y, sigma)) or 0 * y)
    velocity(x.expand(2, -1), torch.tensor([0.0, 1.0], dtype=torch.float64))
    y, sigma = seen[0]
    torch.testing.assert_close(sigma, torch.tensor([80.0, 0.002], dtype=torch.float64))
    torch.testing.assert_close(y, torch.cat([80 * x, 1.002 * x]))


def test_float32_holds_at_the_data_end() -> None:
    x = sample_noise(range(1), (200,), seed=0)
    t = torch.tensor([1 / 1.002])
    found = velocity_from_denoiser(gaussian)(x, t)
    assert found.dtype == torch.float32
    exact = gaussian_velocity(x.double(), torch.tensor([1 / 1.002], dtype=torch.float64))
    assert float((found - exact).abs().max()) < 1e-3


def test_denoisers_that_return_float32_whatever_they_get() -> None:
    x = torch.ones(2, 3, dtype=torch.float64)
    velocity = velocity_from_denoiser(lambda y, sigma: gaussian(y, sigma).float())
    assert velocity(x, torch.tensor([0.0, 0.5], dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("n", [1, 2, 18, 100])
def test_edms_steps(n: int) -> None:
    times = validate_timesteps(karras(n))
    assert len(times) == n + 1
    sigma = (1 - times[1:]) / times[1:]
    i = np.arange(1, n)
    expected = (80 ** (1 / 7) + i / max(n - 1, 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigma[:-1], expected, rtol=1e-9)
    assert sigma[-1] == 0
    if n > 1:
        assert times[-2] == pytest.approx(1 / 1.002, rel=1e-12)


def edm_euler(denoiser, y: Tensor, sigmas: list[float]) -> Tensor:
    """Algorithm 1 of EDM without its correction, in its own variables."""
    for now, following in itertools.pairwise(sigmas):
        slope = (y - denoiser(y, torch.full((len(y),), now, dtype=y.dtype))) / now
        y = y + (following - now) * slope
    return y


@pytest.mark.parametrize("denoiser", [gaussian, mixture])
def test_euler_steps_are_those_of_edm(denoiser) -> None:
    """Step by step the same. The first differs in its start: 80 x_0 has no data in it, while the
    flow, which comes from t = 0, has by then added what the denoiser returned there."""
    noise = sample_noise(range(20), (5,), seed=3).double()
    ramp = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 18) ** 7
    sigmas = [*ramp.tolist(), 0.0]
    first = denoiser(80 * noise, torch.full((20,), 80.0, dtype=torch.float64))
    expected = edm_euler(denoiser, sigmas[1] * noise + first, sigmas[1:])
    found = euler(velocity_from_denoiser(denoiser), noise, karras(18))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    # From EDM's own start the samples are as near as 1 / 80 of the data is small.
    own = edm_euler(denoiser, 80 * noise, sigmas)
    assert float((found - own).square().mean().sqrt()) < 0.01


def edm_solution(noise: Tensor) -> Tensor:
    """EDM's ODE for Gaussian data from y = 80 x_0 to sigma = 0: the deviation from the mean
    shrinks with the standard deviation of y."""
    return MEAN + WIDTH / math.sqrt(WIDTH**2 + 80**2) * (80 * noise - MEAN)


def test_solutions_tend_to_that_of_edm() -> None:
    noise = sample_noise(range(50), (5,), seed=1).double()
    velocity = velocity_from_denoiser(gaussian)
    # They start from different states, 1 / 80 of the data apart.
    exact = MEAN + WIDTH * noise
    assert float((edm_solution(noise) - exact).abs().max()) < 0.005
    errors = [float((euler(velocity, noise, karras(n)) - exact).abs().max()) for n in (50, 100)]
    assert errors[1] < 0.6 * errors[0]
    fine = heun(velocity, noise, karras(400))
    assert float((fine - edm_solution(noise)).abs().max()) < 0.005


def test_searching_on_edms_grid() -> None:
    """Fewer steps than the grid, found by their cost, beat EDM's own grid of that many."""
    noise = sample_noise(range(200), (4,), seed=2)
    velocity = velocity_from_denoiser(lambda y, sigma: mixture(y.double(), sigma.double()))
    grid = karras(60)
    matrix = estimate_cost_matrix(velocity, noise, grid, batch_size=100)
    assert np.isfinite(matrix.cost).all()
    fine = euler(velocity, noise, grid)
    for budget, path in optimal_paths(matrix.cost, (4, 6)).items():
        found = euler(velocity, noise, grid[list(path.indices)])
        fixed = euler(velocity, noise, karras(budget))
        assert float((found - fine).square().mean()) < float((fixed - fine).square().mean())


@pytest.mark.parametrize(("low", "high"), [(0.0, 80.0), (2.0, 1.0), (-1.0, 1.0)])
def test_ranges_that_cannot_be_are_refused(low: float, high: float) -> None:
    with pytest.raises(InputError, match="0 < sigma_min < sigma_max needed"):
        velocity_from_denoiser(gaussian, sigma_min=low, sigma_max=high)
    with pytest.raises(InputError, match="steps: 0"):
        karras(0)
