"""The study of peers: a tiny run of the real script, its rows, and its statistics by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boss_core.evaluation.comparison import Estimate, paired_difference
from boss_core.evaluation.extractors import Extractor, feature_function
from boss_core.evaluation.uncertainty import frechet_with_error
from boss_core.io.pixels import from_uint8
from boss_core.ode.noise import EVALUATION, sample_noise
from boss_core.ode.solvers import euler
from boss_core.ode.timesteps import uniform
from studies.peers import main
from studies.peers_bench import read_images
from studies.peers_methods import METHODS, OURS
from studies.peers_page import together
from tests.helpers.studies import digits_and_networks

SAMPLES, GRID = 24, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, an untrained network with a velocity, two untrained judges, and a run on them."""
    folder = tmp_path_factory.mktemp("peers")
    digits_and_networks(folder)
    main(arguments(folder))
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        "--teacher", str(folder / "teacher"), "--data", str(folder), "--judges",
        str(folder / "second_classifier"), str(folder / "classifier"), "--budgets", "3",
        "--samples", str(SAMPLES), "--seeds", "2", "--grid", str(GRID), "--costs", "12",
        "--batch-size", "16", "--out", str(folder / "out"), "--docs", str(folder / "docs"),
        "--name", "tiny", *more,
    ]  # fmt: skip


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "out/rows.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_method_is_measured_with_what_it_may_spend(folder: Path) -> None:
    found = rows(folder)
    assert len(found) == 2 * (1 + len(METHODS))
    assert {int(row["evaluations"]) for row in found if row["method"] != "teacher"} == {3}
    assert {row["evaluations"] for row in found if row["method"] == "teacher"} == {str(GRID)}
    for seed in ("0", "1"):  # one and the same sampler under two names
        two = [
            float(row["frechet_classifier"])
            for row in found
            if row["seed"] == seed and row["method"] in ("euler_uniform", "flow_match_euler_1")
        ]
        assert len(two) == 2
        assert two[0] == pytest.approx(two[1], rel=1e-2)


def test_a_row_is_the_distance_of_its_samples(folder: Path) -> None:
    """Sampled and measured again, from the files, by the library alone."""
    from boss_core.checkpoints.folder import load_checkpoint

    network, _ = load_checkpoint(folder / "teacher")
    noise = sample_noise(range(SAMPLES), (1, 8, 8), 1 + EVALUATION)
    ends = euler(network, noise, uniform(3))
    extractor = Extractor("second_classifier", folder / "second_classifier/classifier.safetensors")
    features = feature_function(extractor, 100, torch.device("cpu"))
    real = features(from_uint8(torch.from_numpy(np.load(folder / "train.npy"))))
    expected = frechet_with_error(features(ends), real, blocks=SAMPLES // 2)
    (row,) = (
        row for row in rows(folder)
        if (row["seed"], row["method"], row["budget"]) == ("1", "euler_uniform", "3")
    )  # fmt: skip
    assert float(row["frechet_second_classifier"]) == pytest.approx(expected.value, rel=1e-3)
    assert float(row["frechet_second_classifier_se"]) == pytest.approx(
        expected.standard_error, rel=1e-2
    )
    kid = mean_kernel(real, real) + mean_kernel(features(ends), features(ends))
    kid -= 2 * kernel(features(ends), real).mean()
    assert float(row["kid_second_classifier"]) == pytest.approx(kid, rel=1e-2)


def kernel(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """Of KID: (x'y / F + 1)^3."""
    return (x.double().numpy() @ y.double().numpy().T / x.shape[1] + 1) ** 3


def mean_kernel(x: torch.Tensor, y: torch.Tensor) -> float:
    """Over pairs of two different rows."""
    of_pairs = kernel(x, y)
    return of_pairs[~np.eye(len(x), dtype=bool)].mean()


def test_the_page_says_what_the_rows_say(folder: Path) -> None:
    page = (folder / "docs/results/tiny.md").read_text()
    assert "same 24 noises" in page
    assert "(K = 3: 2 seeds)" in page
    assert page.index("`frechet_second_classifier`") < page.index("### `frechet_classifier`")
    means = {
        method: np.mean([
            float(row["frechet_classifier"])
            for row in rows(folder)
            if row["method"] == method and row["budget"] == "3"
        ])
        for method in METHODS
    }  # fmt: skip
    kids = [1000 * float(row["kid_classifier"]) for row in rows(folder) if row["method"] == "ab2"]
    (line,) = [
        line for line in page.split("`kid_classifier` in")[1].splitlines() if "`ab2`" in line
    ][:1]
    assert float(line.split("|")[2].split("(")[0]) == pytest.approx(np.mean(kids), rel=1e-2)
    best = min((m for m in METHODS if not METHODS[m].ours), key=means.__getitem__)
    of_judge = page.split("### `frechet_classifier`")[1]
    assert f"The best peer: K = 3: `{best}`" in of_judge
    share = 100 * (means[OURS[1]] / means[best] - 1)
    ours = of_judge.split("in per cent of its distance:")[1]
    (line,) = [line for line in ours.splitlines() if line.startswith(f"| `{OURS[1]}`")][:1]
    assert line.split("|")[2].startswith(f" {share:+.0f} % (")
    assert (folder / "docs/results/tiny.csv").read_bytes() == (folder / "out/rows.csv").read_bytes()
    with Image.open(folder / "docs/images/tiny-samples.png") as picture:
        assert picture.height == (1 + len(METHODS)) * (8 * 4 + 2)


def test_a_run_goes_on_where_it_stopped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "out/rows.csv"
    whole = path.read_text()
    path.write_text(whole[:-30])  # in the middle of the last line
    main(arguments(folder))
    assert "peers: 1 sets of samples to do" in capsys.readouterr().out
    assert path.read_text() == whole


def test_rows_of_other_columns_are_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_bytes((folder / "out/settings.json").read_bytes())
    before = "seed,method,budget,evaluations\n0,ab2,3,3\n"
    (tmp_path / "rows.csv").write_text(before)
    with pytest.raises(SystemExit, match=r"columns of another run \(frechet_classifier, "):
        main(arguments(folder, "--out", str(tmp_path)))
    assert (tmp_path / "rows.csv").read_text() == before


def test_seeds_that_lack_a_method_are_left_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("rows.csv", "settings.json"):
        (tmp_path / "out" / name).write_bytes((folder / "out" / name).read_bytes())
    lines = (tmp_path / "out/rows.csv").read_text().splitlines(keepends=True)
    more = [line.replace("0,ab2,3", "0,ab2,4") for line in lines if line.startswith("0,ab2,3")]
    kept = [line for line in lines if not line.startswith("1,ab2,3")]
    (tmp_path / "out/rows.csv").write_text("".join(kept + more))
    main([
        "--page", "--out", str(tmp_path / "out"), "--docs", str(tmp_path / "docs"),
        "--name", "less",
    ])  # fmt: skip
    page = (tmp_path / "docs/results/less.md").read_text()
    assert "(K = 3: 1 seed)" in page
    assert "K = 4" not in page


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--budgets", "1"], "--budgets: 1; 2 to 8"),
        (["--samples", "30"], "samples: 24, but 30 asked for"),
        (["--costs", "3"], "--costs: 3; at least 10 needed"),
        (["--judges", "nowhere"], "nowhere/card.json"),
    ],
)
def test_what_cannot_be_measured_is_refused(folder: Path, more: list[str], said: str) -> None:
    before = (folder / "out/rows.csv").read_bytes()
    with pytest.raises(SystemExit) as refused:
        main(arguments(folder, *more))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert (folder / "out/rows.csv").read_bytes() == before


def test_images_of_another_shape_are_refused(folder: Path, tmp_path: Path) -> None:
    """Strips as CIFAR-10 comes in, which are read, for a network of digits."""
    strip = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    Image.fromarray(strip.reshape(96, 32, 3)).save(tmp_path / "train_000.webp", lossless=True)
    np.save(tmp_path / "train_labels.npy", np.zeros(3, np.uint8))
    assert np.array_equal(read_images(tmp_path, 2), strip[:2].transpose(0, 3, 1, 2))
    with pytest.raises(SystemExit, match=r"images of shape \(3, 32, 32\); \(1, 8, 8\)"):
        main(arguments(folder, "--data", str(tmp_path)))


def test_the_mean_over_seeds_has_the_error_of_independent_means() -> None:
    """Two seeds of 20 blocks: variances add up and are divided by four, here to 3 %."""
    rng = np.random.default_rng(0)
    of_seeds = [Estimate(value, value + 0.01 * rng.normal(size=20)) for value in (1.0, 1.2)]
    both = together(of_seeds)
    assert both.value == pytest.approx(1.1)
    alone = [each.standard_error for each in of_seeds]
    assert both.standard_error == pytest.approx(np.hypot(*alone) / 2, rel=0.03)
    assert paired_difference(both, both).standard_error == 0
    assert together(of_seeds[:1]) is of_seeds[0]
