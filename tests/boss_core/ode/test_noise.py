"""Noise and labels drawn from seeds."""

import itertools

import numpy as np
import pytest
import torch

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import sample_generators
from boss_core.ode.noise import (
    COSTS,
    EVALUATION,
    SEARCH,
    TRAJECTORIES,
    NoiseSource,
    sample_labels,
    sample_noise,
    seed_for,
)


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


def test_purposes_never_share_noise_with_seeds_of_params_yaml() -> None:
    """Seeds of params.yaml are below 2^32: each purpose has an interval of its own for them."""
    purposes = (0, COSTS, TRAJECTORIES, EVALUATION, SEARCH)
    ends = [(seed_for(p, 0), seed_for(p, 2**32 - 1)) for p in purposes]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(sorted(ends)))
    drawn = [NoiseSource((5,), 7).draw(range(3), p)[0] for p in purposes]
    assert all((a - b).abs().min() > 0 for a, b in itertools.combinations(drawn, 2))


def test_a_source_gives_every_sample_its_own_noise_and_label() -> None:
    source = NoiseSource((2,), np.int64(2**63 - 1), classes=4, frequencies=(1, 0, 2, 1))
    noise, labels = source.draw(range(4, 60), SEARCH)
    part, of_part = source.draw(range(30, 33), SEARCH)
    seed = SEARCH - 1  # 2^63 - 1 and the offset, modulo 2^63
    assert torch.equal(noise, sample_noise(range(4, 60), (2,), seed))
    assert torch.equal(part, noise[26:29])
    assert labels is not None
    assert of_part is not None
    assert torch.equal(of_part, labels[26:29])
    assert set(labels.tolist()) == {0, 2, 3}
    with pytest.raises(InputError, match="seed: -1"):
        NoiseSource((2,), -1).draw(range(2), COSTS)
