"""What came out, in words."""

import numpy as np

from boss_core.evaluation.comparison import Estimate
from flows.records.judges import Judge
from flows.records.variants import recorded
from flows.report.conclusion import conclude

JUDGE = Judge("second_classifier", "frechet_second_classifier", False)
SEARCHED = Judge("classifier", "frechet_classifier", True)
VARIANTS = recorded(
    {name: {} for name in ("pretrained_uniform", "boss", "chosen")} | {"chosen_solver": "ab2"}
)
FLOOR = Estimate(0.5, np.full(20, 0.5))


def estimates(spread: float, **values: float) -> dict[str, Estimate]:
    return {
        name: Estimate(value, value + spread * np.random.default_rng(k).normal(size=20))
        for k, (name, value) in enumerate(values.items())
    }


def test_one_that_is_ahead_and_some_that_cannot_be_told_apart() -> None:
    found = conclude(
        JUDGE, VARIANTS,
        {
            2: estimates(1e-4, pretrained_uniform=6.0, boss=0.75, chosen=1.5),
            4: estimates(0.5, pretrained_uniform=9.0, boss=0.61, chosen=0.6),
        },
        FLOOR, of_pipeline=False,
    )  # fmt: skip
    first, second = found
    assert first.budget == 2
    assert first.sentence.startswith("BOSS: straightened, Bellman steps (0.75 ± ")
    assert first.sentence.endswith(
        ", 1.50 times the teacher's on the fine grid), ahead of all others by more than chance."
    )
    assert first.command == "boss sample --checkpoint models/student/2/boss"
    assert second.sentence.startswith("pretrained, chosen steps, ab2 (0.6 ± ")
    assert second.sentence.endswith("; BOSS: straightened, Bellman steps cannot be told from it.")
    assert second.command == (
        "boss sample --checkpoint models/teacher --schedule results/schedules.json#4/chosen"
    )


def test_what_has_searched_concludes_of_others_only() -> None:
    of = {2: estimates(1e-4, pretrained_uniform=6.0, boss=0.75, chosen=0.1)}
    (found,) = conclude(SEARCHED, VARIANTS, of, FLOOR, of_pipeline=False)
    assert found.sentence.startswith("BOSS")
    only = {name: VARIANTS[name] for name in ("chosen",)}
    assert conclude(SEARCHED, only, of, FLOOR, of_pipeline=False) == []


def test_of_a_pipeline_the_steps_are_written_for_diffusers() -> None:
    of = {2: estimates(1e-4, pretrained_uniform=6.0, boss=0.75, chosen=1.5)}
    (found,) = conclude(JUDGE, VARIANTS, of, FLOOR, of_pipeline=True)
    assert found.command == "boss export models/student/2/boss --to diffusers-fixed"
