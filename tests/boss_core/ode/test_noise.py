"""Noise and labels drawn from seeds."""

import pytest

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import sample_generators
from boss_core.ode.noise import sample_labels, sample_noise


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 0.5, True])
def test_seeds_that_no_generator_takes_are_refused(seed) -> None:
    for draw in (
        lambda: sample_noise(range(2), (2,), seed),
        lambda: sample_labels(range(2), 3, seed),
        lambda: sample_generators(range(2), seed),
    ):
        with pytest.raises(InputError, match=r"seed: .*; an integer from 0 to 2\^63 - 1 needed"):
            draw()
    assert sample_noise(range(2), (2,), 2**63 - 1).isfinite().all()
