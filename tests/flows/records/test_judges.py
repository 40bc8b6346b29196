"""Who says what is best, and of what nothing may be said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boss_core.errors import InputError
from boss_core.evaluation.comparison import Estimate
from flows import paths
from flows.config import ScheduleSearch, load_params
from flows.records.judges import (
    best,
    judges,
    marks,
    read_estimates,
    remark,
    searched_by_features,
    write_replicates,
)
from flows.records.variants import recorded
from tests.helpers.checkout import ROOT

VARIANTS = recorded(
    {name: {} for name in ("pretrained_uniform", "boss", "chosen", "chosen_straightened")}
    | {"chosen_solver": "ab2"}
)
SEARCHED = ["chosen", "chosen_straightened"]


def search(**change: Any) -> ScheduleSearch:
    found = load_params(ROOT / "params.yaml").schedule
    return found.model_copy(update=change)


def record(*others: str, extractor: str = "classifier") -> dict[str, Any]:
    return {"extractor": extractor, "judges": dict.fromkeys(others, "a hash")}


def of_values(**values: float) -> dict[str, Estimate]:
    """Estimates that are sure to a hundredth, each with a noise of its own."""
    return {
        name: Estimate(value, value + 0.0005 * np.random.default_rng(k).normal(size=20))
        for k, (name, value) in enumerate(values.items())
    }


@pytest.mark.parametrize(
    ("objective", "distance", "expected"),
    [
        ("auto", "features", True),
        ("refine", "features", True),
        ("auto", "sliced_wasserstein", False),
        ("refine", "energy", False),
        ("l2_squared", "features", False),  # from the cost matrix: the distance is not asked
        ("gits", "features", False),
        ("lpips", "features", False),  # by another network, which measures nothing here
    ],
)
def test_what_searched_by_features(objective: str, distance: str, expected: bool) -> None:
    assert searched_by_features(search(objective=objective, distance=distance)) == expected


def test_a_search_never_counts_as_better_by_what_it_searched_with() -> None:
    values = of_values(pretrained_uniform=1.0, boss=0.8, chosen=0.1, chosen_straightened=0.2)
    (alone,) = judges(record(), search(objective="auto", distance="features"))
    assert (alone.name, alone.metric, alone.searched) == ("classifier", "frechet_classifier", True)
    found = best(alone, VARIANTS, values)
    assert found is not None
    assert (found.name, found.level, found.rivals) == ("boss", ("boss",), 1)
    assert marks(alone, VARIANTS, values) == {
        "pretrained_uniform": "", "boss": "*", "chosen": "()", "chosen_straightened": "()",
    }  # fmt: skip
    says = remark([alone], VARIANTS)
    assert says.startswith("The chosen steps were searched by the features of the classifier, the")
    assert "has to be shown by a judge that searched nothing (evaluate.judges)" in says
    # Where nothing else is there, nothing is best.
    only = {name: VARIANTS[name] for name in SEARCHED}
    assert best(alone, only, values) is None
    assert set(marks(alone, only, values).values()) == {"()"}


def test_a_judge_that_searched_nothing_decides() -> None:
    values = of_values(pretrained_uniform=1.0, boss=0.8, chosen=0.1, chosen_straightened=0.1001)
    wanted = search(objective="auto", distance="features")
    found = judges(record("second_classifier", "inception"), wanted)
    assert [judge.name for judge in found] == ["second_classifier", "inception", "classifier"]
    assert [judge.metric for judge in found] == [
        "frechet_second_classifier", "fid", "frechet_classifier",
    ]  # fmt: skip
    assert [judge.searched for judge in found] == [False, False, True]
    assert marks(found[0], VARIANTS, values) == {
        "pretrained_uniform": "", "boss": "", "chosen": "=", "chosen_straightened": "=",
    }  # fmt: skip
    assert marks(found[2], VARIANTS, values)["boss"] == "*"
    assert "second_classifier searched nothing and decides" in remark(found, VARIANTS)

    # Not searched by features, all may be ranked by all, and nothing needs to be said.
    found = judges(record("second_classifier"), search(objective="gits"))
    assert not any(judge.searched for judge in found)
    assert remark(found, VARIANTS) == ""
    papers = {name: VARIANTS[name] for name in ("pretrained_uniform", "boss")}
    assert remark(judges(record(), wanted), papers) == ""


def test_replicates_that_are_not_the_records_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = of_values(boss=0.8)
    write_replicates(4, {"boss": {"fid": values["boss"]}})
    of_budget = {"boss": {"fid": 0.8}}
    found = read_estimates(4, of_budget, "fid")
    assert found["boss"].value == 0.8
    assert found["boss"].standard_error == values["boss"].standard_error
    where = r"^samples/4/replicates\.json: not the replicates of frechet_x of metrics/4\.json"
    with pytest.raises(InputError, match=where):
        read_estimates(4, of_budget, "frechet_x")
    with pytest.raises(InputError, match=r"^samples/8/replicates\.json: no such file"):
        read_estimates(8, of_budget, "fid")
    for content in ({"boss": {"fid": ["x"]}}, {"boss": [0.8]}, {"other": {"fid": [0.8]}}):
        paths.replicates(4).write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"^samples/4/replicates\.json: not the replicates"):
            read_estimates(4, of_budget, "fid")
