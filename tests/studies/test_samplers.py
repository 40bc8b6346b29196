"""The study of samplers: a tiny run of the real script, and its statistics by hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from boss_core.checkpoints.folder import load_checkpoint, save_checkpoint
from boss_core.evaluation.extractors import Extractor, feature_function
from boss_core.evaluation.frechet import evaluate_images
from boss_core.evaluation.sampling import sample_images
from boss_core.io.pixels import from_uint8
from boss_core.networks.classifier import Classifier, ClassifierConfig, save_classifier
from boss_core.networks.unet import UNet, UNetConfig
from boss_core.ode.noise import COSTS, EVALUATION, sample_noise
from boss_core.ode.solver_table import steps_of
from boss_core.ode.solvers import euler
from boss_core.ode.timesteps import uniform
from boss_core.search.distances import feature_frechet
from boss_core.training.flow_matching import flow_matching_loss
from boss_core.training.loop import train
from boss_core.training.randomness import BatchShare
from boss_core.training.settings import TrainingSettings
from studies.samplers import AUTO, CANDIDATES, REFINED, Cell, main, parsed, plan
from studies.samplers_page import changes, rank_correlations, verdicts
from tests.helpers.checkout import ROOT

GRID, SAMPLES = 12, 60
CHANGED = {
    "trajectories": {"samples": 20},
    "finetune": {"training": {"iterations": 3, "batch_size": 8, "warmup": 0}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, a small network trained on them for a moment, and an untrained classifier."""
    folder = tmp_path_factory.mktemp("study")
    real = np.rint(load_digits().images[:150, None] * (255 / 16)).astype(np.uint8)
    np.save(folder / "train.npy", real)
    torch.manual_seed(0)
    network = UNet(UNetConfig(
        image_size=8, channels=1, base_channels=8, channel_multipliers=(1,), blocks=1,
        attention_sizes=(),
    ))  # fmt: skip
    settings = TrainingSettings(
        iterations=40, batch_size=32, learning_rate=5e-3, learning_rate_schedule="constant",
        warmup=0, gradient_clip=1.0, ema_decay=0.9,
    )  # fmt: skip
    data = from_uint8(torch.from_numpy(real))

    def loss(network: UNet, step: int, share: BatchShare) -> torch.Tensor:
        rows = torch.arange(32 * step, 32 * step + 32) % len(data)
        return flow_matching_loss(network, data[rows], torch.randn(32, 1, 8, 8), torch.rand(32))

    save_checkpoint(folder / "teacher", train(network, loss, settings).network)
    (folder / "features").mkdir()
    save_classifier(
        folder / "features/classifier.safetensors",
        Classifier(ClassifierConfig(channels=1, classes=3, width=8, features=6)),
    )
    card = {"extractor": "classifier", "weights": "classifier.safetensors"}
    (folder / "features/card.json").write_text(json.dumps(card))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["trajectories"] |= CHANGED["trajectories"]
    params["finetune"]["training"] |= CHANGED["finetune"]["training"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    main(arguments(folder))
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    given = {
        "checkpoint": "teacher", "reference": "train.npy", "features": "features",
        "params": "params.yaml", "out": "out", "docs": "docs",
    }  # fmt: skip
    paths = [part for name, path in given.items() for part in (f"--{name}", str(folder / path))]
    numbers = (
        f"--budgets 2 4 --seeds 2 --samples {SAMPLES} --search-samples 16 --grid {GRID}"
        " --straightened 2 --student-seeds 1 --floors euler rk45"
    )
    return [*paths, *numbers.split(), *more]


def rows_of(folder: Path, out: str = "out") -> pd.DataFrame:
    return pd.read_json(folder / out / "rows.jsonl", lines=True)


def test_every_cell_is_measured_once_with_steps_of_its_budget(folder: Path) -> None:
    rows = rows_of(folder)
    cells = [Cell(*cell) for cell in rows[list(Cell._fields)].itertuples(index=False)]
    assert cells == list(plan(parsed(arguments(folder))))
    # Two seeds of 2 floors, two budgets of 10 + 10 + 2 samplers; five students of one seed.
    assert len(cells) == 2 * (2 + 2 * 22) + 5
    for row in rows[~rows["floor"]].itertuples():
        assert (row.indices[0], row.indices[-1]) == (0, GRID)
        assert len(row.indices) - 1 == steps_of(row.budget, row.solver)


def test_each_objective_is_lowest_at_its_own_schedule(folder: Path) -> None:
    rows = rows_of(folder)
    teacher = rows[(rows["network"] == "teacher") & ~rows["floor"]]
    for (solver, _, _), part in teacher.groupby(["solver", "budget", "seed"]):
        by_name = part.set_index("objective")
        for name in (
            ("l2_squared", "l2", "minimax", "gits") if solver != "heun" else ("l2_squared",)
        ):
            predicted = by_name[f"predicted_{name}"]
            assert predicted[name] == pytest.approx(predicted.min(), rel=1e-9)
        if solver != "heun":
            evaluations = by_name["search_evaluations"]
            for auto, refined in AUTO.items():
                distance = by_name[f"predicted_{REFINED[refined]}"]
                assert distance[refined] <= distance[["l2_squared", "uniform"]].min() * (1 + 1e-5)
                others = by_name.loc[[*CANDIDATES, refined], "indices"].map(tuple)
                assert tuple(by_name.at[auto, "indices"]) in set(others)
                assert evaluations[auto] > evaluations[refined]
    assert (rows[rows["floor"] & (rows["solver"] == "euler")]["endpoint_error"] == 0).all()


def test_a_row_is_what_sampling_and_measuring_gives(folder: Path) -> None:
    rows = rows_of(folder).set_index(["network", "solver", "objective", "budget", "seed"])
    row = rows.loc["teacher", "euler", "minimax", 4, 1]
    network, _ = load_checkpoint(folder / "teacher")
    images = sample_images(
        network, uniform(GRID)[row["indices"]], samples=SAMPLES, shape=(1, 8, 8),
        seed=1 + EVALUATION, batch_size=25, device=torch.device("cpu"),
    )  # fmt: skip
    found = evaluate_images(
        images, np.load(folder / "train.npy"),
        Extractor("classifier", folder / "features/classifier.safetensors"),
        cache=folder / "cache", kid_subset_size=SAMPLES, batch_size=30, seed=1,
        device=torch.device("cpu"),
    )  # fmt: skip
    for name in ("frechet_classifier", "kid_classifier"):
        assert row[name] == pytest.approx(found[name], rel=1e-4, abs=1e-7)


def test_a_rerun_measures_only_what_is_missing(folder: Path, capsys) -> None:
    path = folder / "out/rows.jsonl"
    before, rows = path.read_bytes(), rows_of(folder)
    main(arguments(folder))
    assert "0 measurements to do" in capsys.readouterr().out
    assert path.read_bytes() == before
    path.write_bytes(before[:-30])  # stopped in the middle of the last line
    main(arguments(folder))
    assert "1 measurements to do" in capsys.readouterr().out
    pd.testing.assert_frame_equal(
        rows_of(folder).drop(columns="search_seconds"), rows.drop(columns="search_seconds")
    )
    with pytest.raises(SystemExit, match=rf"settings.json: samples: {SAMPLES}, but 61 asked for"):
        main(arguments(folder, "--samples", "61"))


def test_the_page_has_the_means_of_the_rows_and_keeps_what_is_written_by_hand(
    folder: Path,
) -> None:
    page = folder / "docs/results/samplers.md"
    text = page.read_text().replace("## What it says\n", "## What it says\n\nBy hand.\n")
    page.write_text(text + "\nAfter it.\n")
    main(arguments(folder, "--page"))
    assert page.read_text() == text + "\nAfter it.\n"
    rows = rows_of(folder)
    teacher = rows[rows["network"] == "teacher"]
    for title, solver in (("Euler", "euler"), ("Adams-Bashforth 2", "ab2"), ("Heun", "heun")):
        lines = text.split(f"### {title}: `frechet_classifier`\n\n")[1].split("\n\n")[0]
        objectives = list(dict.fromkeys(teacher[teacher["solver"] == solver]["objective"]))
        for line, objective in zip(
            lines.splitlines()[2:], [o for o in objectives if o != "floor"], strict=True
        ):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            assert name == f"`{objective}`"
            for budget, cell in zip((2, 4), cells, strict=True):
                chosen = (
                    (teacher["solver"] == solver)
                    & (teacher["objective"] == objective)
                    & (teacher["budget"] == budget)
                )
                a, b = teacher[chosen]["frechet_classifier"]
                mean, error = (float(number) for number in cell.split(" ± "))
                assert mean == pytest.approx((a + b) / 2, rel=6e-3)
                # The standard error of two values is half their difference.
                assert error == pytest.approx(abs(a - b) / 2, abs=6e-3 * mean)
    table = pd.read_csv(folder / "docs/results/samplers.csv")
    np.testing.assert_allclose(table["energy"], rows["energy"], rtol=1e-9)
    for name in ("score", "ranking"):
        assert (folder / f"docs/images/samplers-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_without_an_extractor_torch_fidelity_is_not_needed(folder: Path) -> None:
    given = arguments(folder, "--features", str(folder / "none"), "--out", str(folder / "other"))
    given += ["--budgets", "2", "--seeds", "1", "--solvers", "euler", "--straightened", "--rows"]
    code = (
        "import sys; sys.modules['torch_fidelity'] = None\n"
        "from studies.samplers import main\n"
        f"main({given})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    rows, with_features = rows_of(folder, "other"), rows_of(folder)
    assert not [name for name in rows if "frechet" in name or "kid" in name]
    same = with_features.merge(rows, on=list(Cell._fields), suffixes=("", "_other"))
    assert len(same) == len(rows) == 10
    np.testing.assert_allclose(same["energy_other"], same["energy"], rtol=1e-4)


def test_predictions_by_features_are_distances_on_the_noise_of_the_search(folder: Path) -> None:
    rows = rows_of(folder)
    network, _ = load_checkpoint(folder / "teacher")
    noise = sample_noise(range(16), (1, 8, 8), COSTS)
    features = feature_function(
        Extractor("classifier", folder / "features/classifier.safetensors"), 16, torch.device("cpu")
    )
    to_fine = feature_frechet(euler(network, noise, uniform(GRID)), features)
    first = rows[(rows["seed"] == 0) & (rows["network"] == "teacher") & ~rows["floor"]]
    for row in first[first["solver"] == "euler"].itertuples():
        ends = euler(network, noise, uniform(GRID)[row.indices])
        assert row.predicted_features == pytest.approx(float(to_fine(ends[None])), rel=1e-3)


def test_changes_verdicts_and_rank_correlations_by_hand() -> None:
    base, other = (10.0, 20.0, 10.0), (8.0, 15.0, 9.0)
    rows = pd.DataFrame(
        {"seed": seed, "network": "teacher", "solver": "euler", "objective": name, "budget": 3,
         "score": values[seed]}
        for name, values in (("l2_squared", base), ("oss", other))
        for seed in range(3)
    )  # fmt: skip
    changed = changes(rows, "score")
    assert changed["change"].tolist() == pytest.approx([0, 0, 0, -20, -25, -10])
    found = verdicts(changed, "score").loc["teacher", "euler", "oss", 3]
    deviation = np.sqrt(((20 - 55 / 3) ** 2 + (25 - 55 / 3) ** 2 + (10 - 55 / 3) ** 2) / 2)
    assert found["change"] == pytest.approx(-55 / 3)
    assert found["error"] == pytest.approx(deviation / np.sqrt(3))
    # Differences -2, -5, -1: mean -2.67, standard error 1.2, beyond two of them.
    assert found["verdict"] == -1

    score, predictor = [1.0, 2.0, 3.0, 4.0, 9.0], [2.0, 1.0, 4.0, 3.0, 9.0]
    schedules = [[0, 1, 9], [0, 2, 9], [0, 3, 9], [0, 4, 9], [0, 4, 9]]  # the last is a repeat
    table = pd.DataFrame(
        {"solver": "euler", "budget": 2, "seed": 0, "score": score, "predicted_a": predictor,
         "indices": schedules}
    )  # fmt: skip
    found = rank_correlations(table, "score").iloc[0]
    squares = 1 + 1 + 1 + 1  # of the differences of the ranks
    assert found["correlation"] == pytest.approx(1 - 6 * squares / (4 * (4**2 - 1)))
    assert found["schedules"] == 4
