"""The study of criteria: a tiny run of the real script, and its parts by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from studies.criteria import SOLVERS, main, of_group, power_spectrum, rough
from tests.helpers.studies import digits_and_networks


def test_a_tiny_run_has_every_schedule_in_every_seed(tmp_path: Path) -> None:
    digits_and_networks(tmp_path)
    judges = [str(tmp_path / name) for name in ("second_classifier", "classifier")]
    asked = [
        "--teacher", str(tmp_path / "teacher"), "--data", str(tmp_path), "--budgets", "3",
        "--samples", "16", "--seeds", "2", "--grid", "8", "--costs", "12", "--batch-size", "16",
        "--out", str(tmp_path / "out"), "--docs", str(tmp_path / "docs"),
    ]  # fmt: skip
    main([*asked, "--judges", *judges])
    with (tmp_path / "out/rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_seed = [
        {(r["solver"], r["steps"], r["indices"]) for r in rows if r["seed"] == seed}
        for seed in ("0", "1")
    ]
    assert by_seed[0] == by_seed[1]
    assert {solver for solver, *_ in by_seed[0]} == set(SOLVERS)
    for row in rows:
        indices = [int(index) for index in row["indices"].split()]
        assert (indices[0], indices[-1], len(indices)) == (0, 8, 4)
        assert indices == sorted(set(indices))
        assert float(row["last step"]) == pytest.approx((8 - indices[-2]) / 8)
        assert np.isfinite([float(value) for value in list(row.values())[5:]]).all()
    page = (tmp_path / "docs/results/criteria.md").read_text()
    assert "Against `frechet_classifier`" in page
    with pytest.raises(SystemExit, match="--judges: 1; two needed"):
        main([*asked, "--judges", judges[0]])


def test_noise_of_pixels_is_rough_and_a_slope_is_not() -> None:
    """Of independent pixels of variance 1: 1 from the pixel and 4/16 from its neighbours."""
    noise = torch.randn(500, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert float(rough(noise)) == pytest.approx(1.25, rel=0.02)
    slope = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    assert float(rough(slope)) == pytest.approx(0, abs=1e-12)


def test_the_power_spectrum_of_a_wave_is_at_its_frequency() -> None:
    """cos(2 pi 3 x / 16) in every row: 16 * 16 / 2 at the frequency (0, 3) and nothing else."""
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(16.0) / 16).expand(2, 1, 16, 16)
    found = power_spectrum(wave)
    expected = torch.zeros(16, 9, dtype=torch.float64)
    expected[0, 3] = 128.0**2
    assert torch.allclose(found, expected, atol=1e-3)


def test_ranks_are_held_against_the_other_seeds() -> None:
    """Three schedules and two seeds. The judge says 1, 2, 3 in both; the criterion the same in the
    first seed and the reverse in the second, where its choice costs three times the best."""
    criterion = {"0": (10, 20, 30), "1": (9, 8, 7)}
    rows = [
        {"solver": "ab2", "budget": "4", "seed": s, "steps": str(i), "judge": str(1.0 + i),
         "criterion": str(criterion[s][i])}
        for s in ("0", "1") for i in range(3)
    ]  # fmt: skip
    assert of_group(rows, "ab2", 4, "criterion", "judge") == (0.0, -1.0, 1.0)
