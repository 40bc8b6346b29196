"""The text-to-image study, all of it once at a tiny size: what its commands write is true."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from boss_core.networks.classifier import Classifier, ClassifierConfig, save_classifier
from boss_core.ode.timesteps import uniform
from studies.text_to_image import judge, page, students, teacher
from studies.text_to_image.captions import CLASSES, every_caption, prompts, read_cifar10
from studies.text_to_image.frechet import frechet_distance, kernel_distance, of_features
from studies.text_to_image.pipeline import CALL, Size, load_pipeline, make_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.long]

SIZE = ["--layers", "2", "--heads", "1", "--head", "16"]
GRID, SAMPLES = 4, 20
STUDENTS = [
    "--budgets", "1", "2", "--guided-steps", "1", "2", "4", "--grid", str(GRID), "--guidance", "3",
    "--samples", str(SAMPLES), "--search-samples", "8", "--trajectories", "32", "--batch-size", "8",
    "--draw-batch", "10", "--iterations", "30", "--full-rate", "1e-3", "--rank", "4",
    "--lora-rate", "3e-3", "--dtype", "float32", "--device", "cpu", "--no-compile",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Strips as those of CIFAR-10: 64 images to train on and 32 to test on."""
    folder = tmp_path_factory.mktemp("cifar10")
    draw = np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 32)):
        labels = draw.integers(0, 10, count).astype(np.uint8)
        np.save(folder / f"{split}_labels.npy", labels)
        colours = (25 * labels[:, None] + draw.integers(0, 30, (count, 3))).astype(np.uint8)
        images = np.broadcast_to(colours[:, None, None], (count, 32, 32, 3))
        for number, part in enumerate(np.split(images, 2)):
            strip = Image.fromarray(part.reshape(-1, 32, 3))
            strip.save(folder / f"{split}_{number:03d}.webp", lossless=True)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of two calls: the second goes on where the first ended."""
    folder = tmp_path_factory.mktemp("teacher")
    options = [str(folder), "--data", str(data), "--steps", "40", "--batch-size", "8", *SIZE]
    options += ["--warmup", "10", "--learning-rate", "3e-3"]
    for _ in range(2):
        teacher.main([*options, "--device", "cpu", "--no-compile", "--shown", "1"])
    return folder


@pytest.fixture(scope="module")
def judged(trained: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a student of each kind, judged by a small classifier."""
    folder = tmp_path_factory.mktemp("study")
    students.main([str(folder), "--teacher", str(trained / "pipeline"), *STUDENTS])
    torch.manual_seed(0)
    config = ClassifierConfig(channels=3, classes=10, width=8, features=12)
    save_classifier(folder / "classifier.safetensors", Classifier(config))
    judge.main(of_judge(folder, data))
    return folder


def of_judge(folder: Path, data: Path) -> list[str]:
    weights = ["--classifier", str(folder / "classifier.safetensors")]
    return [str(folder), "--data", str(data), *weights, "--device", "cpu", "--judges", "classifier"]


def of_sets(folder: Path) -> Any:
    return json.loads((folder / "judged.json").read_text())["sets"]


def test_captions_reach_the_network_word_by_word() -> None:
    pipeline = make_pipeline(Size(1, 1, 64))
    again = make_pipeline(Size(1, 1, 64)).tokenizer
    assert again.get_vocab() == pipeline.tokenizer.get_vocab()
    words = {word for text in every_caption() for word in text.split()}
    assert words <= {token.removesuffix("</w>") for token in pipeline.tokenizer.get_vocab()}
    assert len(pipeline.tokenizer("a small photo of a cat").input_ids) == 6 + 2
    texts = [*every_caption(), ""]
    tokens, _, pooled, _ = pipeline.encode_prompt(
        texts, None, None, do_classifier_free_guidance=False, max_sequence_length=1
    )
    for embedding in (tokens.flatten(1), pooled):
        far = torch.cdist(embedding, embedding) + 1e9 * torch.eye(len(texts))
        assert far.min() > 0.1 * embedding.norm(dim=1).mean()


def test_strips_are_read_as_they_are(data: Path) -> None:
    images, labels = read_cifar10(data, "train", 40)
    first = np.asarray(Image.open(data / "train_000.webp")).reshape(-1, 32, 32, 3)
    assert images.shape == (40, 3, 32, 32)
    assert labels.tolist() == np.load(data / "train_labels.npy")[:40].tolist()
    np.testing.assert_array_equal(images[:32], first.transpose(0, 3, 1, 2))


def test_the_second_call_goes_on(trained: Path) -> None:
    record = json.loads((trained / "teacher.json").read_text())
    first, second = record["runs"]
    assert first["steps"] == second["steps"] == 40
    assert record["steps"] == first["steps"] + second["steps"]
    assert record["samples_seen"] == 8 * record["steps"]
    pictures = sorted(trained.glob("grid-*.png"))
    assert Image.open(pictures[-1]).size == (2 * 33, 2 * 33 * len(CLASSES))


def test_another_size_is_refused(trained: Path, data: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*pipeline: layers, .*\(2, 1, 16\), but"):
        teacher.main([str(trained), "--data", str(data), "--layers", "3", "--device", "cpu"])


def test_the_teacher_is_the_guided_pipeline_itself(trained: Path, judged: Path) -> None:
    """Its set is what diffusers' own scheduler gives with the noise levels of the grid."""
    found = load_file(judged / "samples" / "teacher.safetensors")["latents"]
    pipeline = load_pipeline(trained / "pipeline", torch.device("cpu"), torch.float32)
    calls = students.evaluation_calls(3.0, 0, torch.device("cpu"))
    sigmas = (1.0 - uniform(GRID))[:-1].tolist()
    call = calls.call(range(SAMPLES))
    expected = pipeline(**call, sigmas=sigmas, output_type="latent").images
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_sets_are_judged_as_they_are(judged: Path) -> None:
    sets = of_sets(judged)
    assert sets["teacher"]["evaluations"] == 2 * GRID
    assert sets["guided-uniform-2"]["evaluations"] == 4
    assert sets["lora-bellman-2"]["evaluations"] == sets["full-bellman-2"]["evaluations"] == 2
    assert sets["guided-uniform-4"]["distance"]["mean"] == 0.0  # the grid itself
    teacher_latents = load_file(judged / "samples" / "teacher.safetensors")["latents"]
    for name in ("lora-bellman-1", "guided-shifted-2"):
        own = load_file(judged / "samples" / f"{name}.safetensors")["latents"]
        each = ((own - teacher_latents) ** 2).sum(dim=(1, 2, 3)).numpy()
        np.testing.assert_allclose(sets[name]["distance"]["mean"], each.mean(), rtol=1e-5)
        error = each.std(ddof=1) / np.sqrt(SAMPLES)
        np.testing.assert_allclose(sets[name]["distance"]["error"], error, rtol=1e-4)
        np.testing.assert_allclose(np.load(judged / "distances.npz")[name], each, rtol=1e-5)
    # Straightened students are nearer than the teacher in one guided step.
    for kind in ("lora", "full"):
        near = sets[f"{kind}-bellman-1"]["distance"]["mean"]
        assert near < 0.9 * sets["guided-uniform-1"]["distance"]["mean"]


def test_what_is_there_is_not_made_again(judged: Path, trained: Path, data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (judged / "samples").iterdir()}
    sets = of_sets(judged)
    students.main([str(judged), "--teacher", str(trained / "pipeline"), *STUDENTS])
    judge.main(of_judge(judged, data))
    assert {path: path.stat().st_mtime_ns for path in (judged / "samples").iterdir()} == before
    assert of_sets(judged) == sets


def test_other_settings_are_refused(judged: Path, trained: Path) -> None:
    options = [str(judged), "--teacher", str(trained / "pipeline"), *STUDENTS]
    with pytest.raises(SystemExit, match=r"error: .*schedules.json: of other settings"):
        students.main([*options, "--guidance", "2"])
    with pytest.raises(SystemExit, match=r"error: --budgets: 9; 1\.\.4, the steps of"):
        students.main([*options, "--budgets", "9"])


def test_the_page_says_what_was_measured(judged: Path, trained: Path, tmp_path: Path) -> None:
    page.main([str(judged), "--teacher", str(trained), "--docs", str(tmp_path)])
    text = (tmp_path / "results/text-to-image.md").read_text()
    amount = of_sets(judged)["full-bellman-2"]["distance"]
    rows = pd.read_csv(tmp_path / "results/text-to-image.csv").set_index("set")
    assert rows.loc["full-bellman-2", "distance_mean"] == pytest.approx(amount["mean"])
    assert rows.loc["teacher", "evaluations"] == 2 * GRID
    (row,) = (line for line in text.split("### ")[1].splitlines() if "student, all weights" in line)
    assert row.split(" | ")[2].startswith(f"{amount['mean']:.3g}")
    for name in ("text-to-image", "text-to-image-samples"):
        assert Image.open(tmp_path / f"images/{name}.png").size[0] > 500


def test_labels_of_prompts_name_their_class() -> None:
    texts, labels = prompts(70)
    assert all(CLASSES[label] in text for text, label in zip(texts, labels, strict=True))
    assert len(set(texts)) == 50


@pytest.mark.parametrize(("many", "few", "width"), [(300, 280, 20), (15, 12, 20)])
def test_distances_are_torch_fidelitys(many: int, few: int, width: int) -> None:
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(many, width, generator=draw)
    other = 1.2 * torch.randn(few, width, generator=draw) + 0.1
    statistics = [fid_features_to_statistics(x) for x in (one, other)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    found = of_features(one), of_features(other)
    assert frechet_distance(*found) == pytest.approx(expected, rel=1e-5)
    kernel = kid_features_to_metric(
        one[:few], other, kid_subsets=1, kid_subset_size=few, verbose=False
    )["kernel_inception_distance_mean"]
    all_of_both = of_features(one[:few]), of_features(other)
    mean, spread = kernel_distance(*all_of_both, subsets=1, size=few)
    assert (mean, spread) == (pytest.approx(kernel, rel=1e-4), 0.0)


def test_calls_have_the_size_of_the_images() -> None:
    assert (CALL["height"], CALL["width"]) == (32, 32)
