"""What the page concludes, by hand and by scipy's own paired test."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from flows.straighten.comparison import at_equal_evaluations, in_words, paired
from flows.straighten.held_out import Sampled


def sampled(distances: Any, evaluations: float = 4, *, steps: int = 4, guided: bool = True) -> Any:
    """Of one latent each, so far from the fine ones, which are 0."""
    latents = torch.tensor(np.sqrt(distances), dtype=torch.float32)[:, None]
    return Sampled("title", latents, (), evaluations, 0.1, steps, guided)


FINE = sampled([0.0, 0.0, 0.0, 0.0], 200, steps=100)


def test_the_paired_difference_by_hand() -> None:
    found = paired(sampled([1.0, 2.0, 3.0, 4.0]), sampled([2.0, 2.0, 4.0, 6.0]), FINE)
    # Differences -1, 0, -1, -2: mean -1, squares about it 0 + 1 + 0 + 1 over 3, error of four.
    assert found.mean == pytest.approx(-1, rel=1e-5)
    assert found.error == pytest.approx((2 / 3) ** 0.5 / 2, rel=1e-5)
    assert found.chance  # 1 is 2.45 errors, and Student's t of 3 degrees of freedom 3.18


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.5, 0.6, 0.8, 2.0, -2.0])
def test_chance_is_that_of_the_paired_test(shift: float) -> None:
    draw = np.random.default_rng(0)
    first = draw.uniform(7, 8, 9)
    second = first + shift + draw.normal(0, 0.8, 9)
    found = paired(sampled(first), sampled(second), sampled(np.zeros(9)))
    assert found.chance == (stats.ttest_rel(first, second).pvalue > 0.05)


def test_sentences_say_which_is_nearer() -> None:
    own = sampled([1.0, 1.1, 0.9, 1.0], guided=False)
    unguided = sampled([9.0, 9.0, 9.1, 9.0], guided=False)
    twice = sampled([2.0, 2.0, 2.0, 2.0], 8)
    equal = sampled([0.5, 0.5, 0.5, 0.5], steps=2)
    assert at_equal_evaluations(own, [twice, equal, unguided]) is equal
    first, second, third = in_words(own, [twice, equal, unguided], FINE)
    assert first == (
        "4 network evaluations of the student come nearer to the teacher's samples than 8 network"
        " evaluations of the guided pipeline (1 against 2; paired difference -1 ± 0.041, its"
        " standard error over 4 samples)."
    )
    assert "stay farther from the teacher's samples than the guided pipeline in 2 steps" in second
    assert third == (
        "Before its training the student was the pipeline without guidance, at a distance of"
        " 9.025; now it is at 1."
    )


def test_sentences_say_what_is_chance_and_what_nothing_can_be_said_of() -> None:
    one = sampled([1.0], 1, steps=1, guided=False)
    fine = sampled([0.0], 8, steps=8)
    before = sampled([9.0], 1, steps=1, guided=False)
    alone, _ = in_words(one, [sampled([4.0], 2, steps=1), before], fine)
    assert alone.startswith("1 network evaluation of the student is as near")
    assert "within chance (1 against 4; one sample, which has no interval)" in alone
    # A pipeline without guidance is compared with in its own steps alone.
    own = sampled([1.0, 2.0, 3.0, 4.0])
    (sentence,) = in_words(own, [sampled([1.0, 2.5, 2.5, 4.0])], FINE)
    assert "as near to the teacher's samples as 4 network evaluations of the pipeline" in sentence
    assert "of the pipeline before the training, within chance" in sentence
    broken = sampled([1.0, 2.0, 3.0, float("nan")])
    (sentence,) = in_words(broken, [own], FINE)
    assert "cannot be compared" in sentence
    assert not paired(broken, own, FINE).chance


def test_guidance_that_costs_more_than_the_student_has_buys_no_steps() -> None:
    assert at_equal_evaluations(sampled([1.0], 1), [sampled([1.0], 2, steps=1)]) is None
