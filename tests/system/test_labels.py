"""Class labels: each sample keeps its own, from noise to loss to image."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from boss_core.checkpoints.folder import CARD, load_checkpoint, save_checkpoint
from boss_core.costs.matrix import estimate_cost_matrix
from boss_core.data.images import digits
from boss_core.errors import InputError
from boss_core.evaluation.sampling import sample_images
from boss_core.io.pixels import to_uint8
from boss_core.networks.unet import UNet, UNetConfig
from boss_core.ode.noise import sample_labels, sample_noise
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import quadratic, uniform
from boss_core.ode.velocity import CountedVelocity, with_labels
from boss_core.straightening.segments import Segments, knot_states
from boss_core.training.randomness import BatchShare
from flows import paths
from flows.config import load_params
from flows.records.labels import draw_labels, write_label_counts
from flows.report.image_grid import COLUMNS, ROWS, image_grid
from flows.stages import check as check_stage
from flows.stages import cost, prepare, schedule, teacher, trajectories
from flows.stages.check import check
from tests.helpers.checkout import ROOT
from tests.helpers.costs import pairwise, smooth
from tests.helpers.project import Project
from tests.helpers.stages import run_all

CPU = torch.device("cpu")


def per_sample(labels: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return labels.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def accelerating(x, t, labels):
    """dx/dt = label t."""
    return torch.ones_like(x) * per_sample(labels, x) * t.view(-1, *[1] * (x.ndim - 1))


def straight(x, t, labels):
    """dx/dt = label / 10: every chord of a trajectory is its label's."""
    return torch.ones_like(x) * per_sample(labels, x) / 10


def test_a_label_depends_on_seed_and_index_alone() -> None:
    whole = sample_labels(range(40), 10, seed=3)
    assert whole.dtype == torch.int64
    assert torch.equal(whole[25:31], sample_labels(range(25, 31), 10, seed=3))
    assert not torch.equal(whole, sample_labels(range(40), 10, seed=4))
    assert len(sample_labels(range(0), 10, seed=3)) == 0


def test_labels_come_as_often_as_asked_and_apart_from_the_noise() -> None:
    samples = 20_000
    for frequencies, share in ((None, [0.25] * 4), ([0, 1, 7, 0], [0, 0.125, 0.875, 0])):
        labels = sample_labels(range(samples), 4, seed=0, frequencies=frequencies)
        found = labels.bincount(minlength=4).numpy() / samples
        error = np.sqrt(np.array(share) * (1 - np.array(share)) / samples)
        assert (np.abs(found - share) <= 4 * error).all(), found
    labels = sample_labels(range(samples), 4, seed=0).numpy()
    noise = sample_noise(range(samples), (3,), seed=0).numpy()
    for column in (*noise.T, *(noise**2).T):
        assert abs(np.corrcoef(labels, column)[0, 1]) < 4 / np.sqrt(samples)


@pytest.mark.parametrize("frequencies", [[1, 2], [1, -1, 1], [0, 0, 0], [1, np.nan, 1]])
def test_frequencies_that_cannot_be_are_refused(frequencies: list) -> None:
    with pytest.raises(InputError, match=r"frequencies: .* one for each of 3 classes"):
        sample_labels(range(4), 3, seed=0, frequencies=frequencies)


def test_cost_in_closed_form() -> None:
    """k steps of length h at once err by label h^2 (0 + 1 + ... + k-1) in each element."""
    labels = torch.tensor([0, 3, 1, 1, 2])
    found = estimate_cost_matrix(
        accelerating, sample_noise(range(5), (2, 3), 0), uniform(10), batch_size=2, labels=labels
    )
    k = np.arange(11)[None, :] - np.arange(11)[:, None]
    expected = 6 * (0.1**2 * k * (k - 1) / 2) ** 2 * (0 + 9 + 1 + 1 + 4) / 5
    np.testing.assert_allclose(found.cost, np.where(k > 0, expected, 0), rtol=1e-5)


def test_cost_is_that_of_each_label_pair_by_pair_in_any_batch() -> None:
    def velocity(x, t, labels):
        return smooth(x, t) * (1 + per_sample(labels, x)) + per_sample(labels, x)

    noise, grid = sample_noise(range(13), (7,), seed=1), quadratic(20)
    labels = sample_labels(range(13), 3, seed=1)
    assert len(labels.unique()) == 3
    one_by_one = [
        pairwise(with_labels(velocity, labels[i : i + 1]), noise[i : i + 1], grid)
        for i in range(13)
    ]
    expected = np.concatenate(one_by_one).mean(axis=0)
    far = np.triu_indices(21, k=2)
    for batch_size in (1, 5, 13):
        found = estimate_cost_matrix(velocity, noise, grid, batch_size=batch_size, labels=labels)
        np.testing.assert_allclose(found.cost[far], expected[far], rtol=1e-6)
    other = estimate_cost_matrix(velocity, noise, grid, batch_size=5, labels=labels.roll(1))
    assert abs(other.cost[0, 20] / expected[0, 20] - 1) > 1e-3


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_trajectories_and_segments_keep_the_label_of_each_row(solver: str) -> None:
    labels = sample_labels(range(11), 4, seed=2)
    states = np.full((11, 3, 2, 3), np.nan, dtype=np.float32)
    knot_states(
        accelerating, uniform(4), (0, 2, 4), states, seed=0, batch_size=4, device=CPU, labels=labels
    )
    noise = sample_noise(range(11), (2, 3), 0).numpy()
    moved = labels.numpy()[:, None, None, None] * np.array([0, 1, 6])[None, :, None, None] / 16
    np.testing.assert_allclose(states, noise[:, None] + moved, rtol=1e-5, atol=1e-6)

    knot_states(
        straight, uniform(4), (0, 2, 4), states, seed=0, batch_size=4, device=CPU, labels=labels
    )
    # Straight ones, whose chords are all the same, whatever the solver makes of them.
    schedule = Schedule(
        timesteps=(0.0, 0.5, 1.0), indices=(0, 2, 4), solver=solver, objective="uniform"
    )
    own = Segments.of(states, (0, 2, 4), schedule, labels.numpy())
    assert float(own.loss(straight, [9, 0, 4], [0, 1, 1])) < 1e-12
    loss = own.training_loss(seed=0, trajectories=9, batch_size=16)
    assert float(loss(straight, 0, BatchShare())) < 1e-12
    assert max(own.segment_losses(straight, range(2, 11), 4)) < 1e-12

    shuffled = labels.roll(1)
    mixed = Segments.of(states, (0, 2, 4), schedule, shuffled.numpy())
    expected = ((labels - shuffled).numpy()[2:] ** 2).mean() / 100
    assert expected > 0
    assert mixed.segment_losses(straight, range(2, 11), 4) == pytest.approx(
        [expected] * 2, rel=1e-4
    )


def test_images_show_their_labels_in_any_batch() -> None:
    labels = sample_labels(range(9), 10, seed=0)
    noise = sample_noise(range(9), (1, 4, 4), 5)
    expected = to_uint8(noise + per_sample(labels, noise) / 10).numpy()
    counted = CountedVelocity(straight)
    for batch_size in (1, 4, 9):
        images = sample_images(
            counted, uniform(1), samples=9, shape=(1, 4, 4), seed=5, batch_size=batch_size,
            device=CPU, labels=labels,
        )  # fmt: skip
        assert np.array_equal(images, expected)
    assert counted.nfe == 9 + 3 + 1


def test_labels_that_are_not_one_a_sample_are_refused() -> None:
    labels, says = torch.zeros(3, dtype=torch.int64), r"labels: 3 for 4 samples"
    with pytest.raises(InputError, match=says):
        estimate_cost_matrix(
            straight, torch.zeros(4, 2), uniform(4), batch_size=2, labels=labels
        )  # fmt: skip
    states = np.zeros((4, 2, 3), dtype=np.float32)
    with pytest.raises(InputError, match=says):
        knot_states(
            straight, uniform(4), (0, 4), states, seed=0, batch_size=2, device=CPU, labels=labels
        )
    schedule = Schedule(timesteps=(0.0, 1.0), indices=(0, 4), objective="uniform")
    with pytest.raises(InputError, match=says):
        Segments.of(states, (0, 4), schedule, labels.numpy())
    with pytest.raises(InputError, match=says):
        sample_images(
            straight, uniform(1), samples=4, shape=(1, 2, 2), seed=0, batch_size=2, device=CPU,
            labels=labels,
        )  # fmt: skip


CONFIG = UNetConfig(
    image_size=8,
    channels=1,
    base_channels=16,
    channel_multipliers=(1, 2, 2),
    blocks=1,
    attention_sizes=(4,),
)


def unet(classes: int | None) -> UNet:
    torch.manual_seed(0)
    return UNet(CONFIG.model_copy(update={"classes": classes})).eval()


def test_a_network_without_classes_is_what_it_was_before_there_were_any(tmp_path: Path) -> None:
    plain, conditional = unet(None).state_dict(), unet(5).state_dict()
    assert conditional.keys() - plain.keys() == {"label.weight"}
    assert list(plain) == [name for name in conditional if name != "label.weight"]
    for name, tensor in plain.items():
        assert torch.equal(tensor, conditional[name])
    save_checkpoint(tmp_path, unet(None))
    assert set(json.loads((tmp_path / CARD).read_text())["config"]) == {
        "image_size", "channels", "base_channels", "channel_multipliers", "blocks",
        "attention_sizes",
    }  # fmt: skip


@torch.no_grad()
def test_conditional_network_and_its_checkpoint(tmp_path: Path) -> None:
    network = unet(3)
    torch.nn.init.normal_(network.last.weight, std=0.1)  # it starts at zero, which hides faults
    x, t, labels = torch.randn(5, 1, 8, 8), torch.rand(5), torch.tensor([0, 2, 1, 2, 0])
    found = network(x, t, labels)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], labels[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)
    changed = network(x, t, torch.tensor([0, 2, 0, 2, 0]))
    torch.testing.assert_close(changed[[0, 1, 3, 4]], found[[0, 1, 3, 4]])
    assert not torch.allclose(changed[2], found[2])
    save_checkpoint(tmp_path, network)
    loaded, card = load_checkpoint(tmp_path)
    assert card.config.classes == 3
    assert torch.equal(loaded(x, t, labels), found)


def test_a_network_says_which_labels_it_needs() -> None:
    x, t = torch.zeros(2, 1, 8, 8), torch.zeros(2)
    with pytest.raises(InputError, match=r"labels: none given to a network of 3 classes; one for"):
        unet(3)(x, t)
    with pytest.raises(InputError, match=r"labels: shape \(1,\) given to .* each of 2 states"):
        unet(3)(x, t, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(InputError, match="labels: given to a network that has no classes"):
        unet(None)(x, t, torch.zeros(2, dtype=torch.int64))


def test_labels_are_drawn_as_often_as_in_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_label_counts(None, None, None)
    assert not paths.LABEL_COUNTS.exists()
    assert draw_labels(None, 5, 0) is None

    write_label_counts(3, np.array([2, 0, 2, 2]), 3)
    assert json.loads(paths.LABEL_COUNTS.read_text()) == {"counts": [1, 0, 3]}
    drawn = draw_labels(3, 50, 7)
    assert drawn is not None
    assert torch.equal(drawn, sample_labels(range(50), 3, 7, frequencies=[0.25, 0, 0.75]))
    assert capsys.readouterr().out == ""

    for labels, classes, says in ((None, None, "no labels"), (np.array([0, 1]), 2, "2 classes")):
        write_label_counts(3, labels, classes)
        assert json.loads(paths.LABEL_COUNTS.read_text()) == {"counts": [1, 1, 1]}
        assert f"3 classes, but the data has {says}" in capsys.readouterr().out


def unlabelled(folder: Path) -> dict:
    """Images that are not in sub-folders by class, and what has to be set for them."""
    (folder / "images").mkdir(parents=True)
    for k, image in enumerate(digits()[0][:130]):
        Image.fromarray(image[0]).save(folder / "images" / f"{k:03}.png")
    # The stages up to the trajectories use none of it.
    (folder / "inception").mkdir()
    torch.save({"weight": torch.zeros(1)}, folder / "inception" / "weights.pth")
    return {
        "data.source": "folder",
        "data.path": str(folder / "images"),
        "features.extractor": "inception",
        "features.path": str(folder / "inception"),
        "evaluate.reference_samples": 100,
        "evaluate.judges": [],
    }


def test_a_conditional_teacher_needs_labels(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    changes = unlabelled(tmp_path) | {
        "teacher.conditional": True,
        "evaluate.kid_subset_size": 50,
    }
    for name, value in changes.items():
        block, last = name.split(".")
        content[block][last] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"params\.yaml: teacher\.conditional: true needs labels"):
        check(load_params(tmp_path / "params.yaml"))
    content["teacher"]["conditional"] = False
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    check(load_params(tmp_path / "params.yaml"))


@pytest.mark.slow
def test_a_teacher_draws_the_digit_that_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged by a support vector machine, which has seen real digits only."""
    from sklearn.svm import SVC

    project = Project.bare(tmp_path)
    monkeypatch.chdir(tmp_path)
    project.set(
        {
            "teacher.conditional": True,
            "teacher.base_channels": 16,
            "teacher.training.iterations": 300,
            "teacher.training.batch_size": 64,
            "teacher.training.learning_rate": 4e-3,
            "teacher.training.warmup": 20,
            "teacher.training.ema_decay": 0.99,
        }
    )
    for stage in (prepare, teacher):
        stage.main(load_params())
    data = project.folder / "data"
    judge = SVC().fit(
        np.load(data / "train.npy").reshape(-1, 64), np.load(data / "train_labels.npy")
    )
    real = np.load(data / "test.npy").reshape(-1, 64)
    assert judge.score(real, np.load(data / "test_labels.npy")) > 0.95

    network, _ = load_checkpoint(project.folder / "models" / "teacher")
    asked = sample_labels(range(200), 10, seed=1)
    drawn = sample_images(
        network, uniform(10), samples=200, shape=(1, 8, 8), seed=1, batch_size=200, device=CPU,
        labels=asked,
    )  # fmt: skip
    found = judge.predict(drawn.reshape(-1, 64))
    assert (found == asked.numpy()).mean() > 0.85
    assert (found == asked.roll(1).numpy()).mean() < 0.25  # by chance only


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project.bare(tmp_path_factory.mktemp("conditional"))
    methods = ["boss", "boss_lora", "reflow_uniform", "reflow_distill"]
    project.set({"teacher.conditional": True, "finetune.methods": methods})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        run_all(load_params())
    return project


@pytest.mark.slow
@pytest.mark.long
def test_the_pipeline_keeps_labels(conditional: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(conditional.folder)
    network, card = load_checkpoint(paths.TEACHER)
    assert card.config.classes == 10
    train_labels = np.load(paths.DATA / "train_labels.npy")
    counts = json.loads(paths.LABEL_COUNTS.read_text())["counts"]
    assert counts == np.bincount(train_labels).tolist()

    # The states are those of the teacher with the labels kept beside them, row by row.
    seed = 2 << 32
    labels = np.load(paths.TRAJECTORIES / "labels.npy")
    expected = sample_labels(range(60), 10, seed, frequencies=counts)
    assert np.array_equal(labels, expected.numpy())
    states = np.load(paths.TRAJECTORIES / "states.npy")
    knots = json.loads((paths.TRAJECTORIES / "card.json").read_text())["knots"]
    again = np.zeros_like(states)
    knot_states(
        network, uniform(12), knots, again, seed=seed, batch_size=7, device=CPU, labels=expected
    )
    np.testing.assert_allclose(states, again, rtol=1e-4, atol=1e-4)

    # The cost is that of the labels, drawn apart from those.
    seed = 1 << 32
    drawn = sample_labels(range(24), 10, seed, frequencies=counts)
    assert not torch.equal(drawn, expected[:24])
    with np.load(paths.COST) as file:
        cost = file["cost"]
    noise = sample_noise(range(24), (1, 8, 8), seed)
    found = estimate_cost_matrix(network, noise, uniform(12), batch_size=24, labels=drawn).cost
    np.testing.assert_allclose(cost, found, rtol=1e-3)

    # So are the samples: with the labels of others they would not be those of the grid.
    with Image.open(paths.samples("teacher") / "fine.png") as picture:
        shown = np.asarray(picture).astype(int)
    seed = 3 << 32
    drawn = sample_labels(range(70), 10, seed, frequencies=counts)
    apart = []
    for labels_of in (drawn, drawn.roll(1)):
        images = sample_images(
            network, uniform(12), samples=70, shape=(1, 8, 8), seed=seed, batch_size=70,
            device=CPU, labels=labels_of,
        )  # fmt: skip
        apart.append(
            np.abs(
                shown - np.asarray(image_grid(images[: COLUMNS * ROWS], COLUMNS)).astype(int)
            ).mean()
        )
    assert apart[0] < 0.1 * apart[1]

    for budget in (1, 3):
        _, student_card = load_checkpoint(paths.student(budget) / "boss")
        assert student_card.config.classes == 10
        assert student_card.teacher_hash == card.weights_sha256
        found = json.loads(paths.metrics(budget).read_text())
        for name in ("boss", "boss_lora", "reflow_uniform", "reflow_distill"):
            assert all(np.isfinite(v) for v in found[name].values())
            assert (paths.samples(budget) / f"{name}.png").is_file()


@pytest.mark.slow
def test_a_conditional_network_of_ones_own_on_images_without_labels(
    conditional: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project = conditional.copy(tmp_path / "own")
    folder = project.folder / "inputs" / "mine"
    folder.mkdir()
    for name in ("model.safetensors", "card.json"):
        (folder / name).write_bytes((project.folder / "models" / "teacher" / name).read_bytes())
    project.set(
        unlabelled(tmp_path / "plain")
        | {"teacher.source": "checkpoint", "teacher.path": "inputs/mine"}
    )
    # Not features, for whose extractor there are no weights here: a search by samples needs none.
    monkeypatch.chdir(project.folder)
    for stage in (check_stage, prepare, teacher, cost, schedule, trajectories):
        stage.main(load_params())
    shown = capsys.readouterr().out
    assert "teacher: 10 classes, but the data has no labels: each is sampled as often" in shown
    labels = np.load(project.folder / "trajectories" / "labels.npy")
    assert np.array_equal(labels, sample_labels(range(60), 10, 2 << 32).numpy())
