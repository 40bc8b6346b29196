"""The table at the end of a run, from records in a folder."""

from pathlib import Path

import numpy as np
import pytest

from boss_core.evaluation.comparison import Estimate
from flows.config import load_params
from flows.orchestration.prefect_artifacts import read_table
from flows.records.judges import write_replicates
from flows.records.record import write_record
from tests.helpers.checkout import ROOT

METRIC = "frechet_second_classifier"


def write(name: int | str, metric: str, **values: float) -> None:
    """A record and its replicates, sure to a ten thousandth."""
    estimates = {
        variant: Estimate(value, value + 1e-4 * np.random.default_rng(k).normal(size=20))
        for k, (variant, value) in enumerate(values.items())
    }
    about = {"extractor": "classifier", "judges": {"second_classifier": "a hash"}}
    measured = {v: {metric: each.value} for v, each in estimates.items()}
    write_record(name, about | {"chosen_solver": "ab2"}, measured)
    write_replicates(name, {v: {metric: each} for v, each in estimates.items()})


def test_records_of_other_parameters_beside_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of K = 4 fewer methods are there, and K = 6 was measured by another judge alone."""
    monkeypatch.chdir(tmp_path)
    write("teacher", METRIC, fine=0.5)
    write(2, METRIC, pretrained_uniform=6.0, boss=0.75, chosen=1.5)
    write(4, METRIC, pretrained_uniform=0.9)
    write(6, "frechet_classifier", pretrained_uniform=0.8, boss=0.7)
    monkeypatch.chdir(ROOT)
    params = load_params()
    rows, said = read_table(params, tmp_path, [2, 4, 6])
    new, fewer, other = ({k: v for k, v in row.items() if k != "MLflow run"} for row in rows)
    assert new == {
        "NFE": 2,
        "pretrained, uniform steps": "6",
        "BOSS: straightened, Bellman steps": "0.75*",
        "pretrained, chosen steps, ab2": "1.5",
    }
    assert fewer == {"NFE": 4, "pretrained, uniform steps": "0.9*"}
    assert other == {"NFE": 6}
    assert said[0].startswith(f"{METRIC} for every budget (NFE)")
    assert [line[:6] for line in said[2:]] == ["K = 2:", "K = 4:"]
