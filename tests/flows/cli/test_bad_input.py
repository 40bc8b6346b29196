"""A user's mistake: one line that names it, exit code 2, and nothing lost."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers.checkout import ROOT
from tests.helpers.project import Project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    return finished.copy(tmp_path / "project")


def refused(project: Project, finished: Project, *says: str, lines: int = 1) -> None:
    """``boss repro`` says it, exits with 2, and leaves every output as it was."""
    done = project.run("boss", "repro", code=2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == lines, done.stderr
    for text in says:
        assert text in errors[0], errors[0]
    assert "Traceback" not in done.stderr + done.stdout
    assert project.outputs() == finished.outputs()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"finetune.iteratoins": 5},
            "finetune.iteratoins: no such parameter; known here: methods, lora_rank, training",
        ),
        ({"budget": [2]}, "budget: no such parameter; known here: seed"),
        ({"budgets": [0, 3]}, "budgets.0: 0 found; input should be greater than or equal to 1"),
        ({"budgets": [-2]}, "budgets.0: -2 found"),
        ({"budgets": [3, 13]}, "budgets: 13 is above cost.grid (12); 1..12 needed"),
        ({"budgets": [3, 1, 3]}, "budgets: [3, 1, 3] found; 3 repeated; each budget once"),
        ({"budgets": [2.5]}, "budgets.0: 2.5 found; input should be a valid integer"),
        ({"budgets": ["four"]}, "budgets.0: 'four' found; input should be a valid integer"),
        ({"budgets": []}, "budgets: [] found"),
        ({"budgets": 4}, "budgets: 4 found; input should be a valid list"),
        (
            {"schedule.solver": "rk45"},
            "schedule.solver: 'rk45' found; input should be 'euler' or 'ab2'",
        ),
        (
            {"schedule.objective": "l1"},
            "schedule.objective: 'l1' found; input should be 'auto', 'l2_squared', ",
        ),
        ({"schedule.distance": "fid"}, "schedule.distance: 'fid' found; input should be "),
        ({"schedule.gamma": 0}, "schedule.gamma: 0 found; input should be greater than 0"),
        ({"schedule.samples": 10}, "schedule.samples: 10 found; input should be greater than or"),
        ({"schedule.budget": 4}, "schedule.budget: no such parameter; known here: solver, objec"),
        ({"cost.samples": 1}, "cost.samples: 1 found; auto, or an integer of 2 or more, needed"),
        (
            {"cost.reference": "ab2"},
            "cost.reference: 'ab2' found; input should be 'euler', 'heun' or 'rk45'",
        ),
        ({"cost.samples": "all"}, "cost.samples: 'all' found; auto, or an integer of 2 or more"),
        (
            {"cost.grid": 301},
            "schedule.solver: ab2 with cost.grid 301; a grid of at most 300 steps, or euler,",
        ),
        (
            {"finetune.methods": ["boss", "lora"]},
            "finetune.methods.1: 'lora' found; input should be 'straightened_uniform', 'boss',"
            " 'boss_lora', 'reflow_uniform', 'reflow_distill' or 'chosen_straightened'",
        ),
        ({"finetune.methods": ["boss", "boss"]}, "['boss', 'boss'] found; boss repeated; each"),
        ({"finetune.methods": []}, "finetune.methods: [] found; list should have at least 1 item"),
        ({"finetune.methods": "boss"}, "finetune.methods: 'boss' found; input should be a valid"),
        (
            {
                "finetune.methods": ["chosen_straightened"],
                "schedule.solver": "euler",
                "schedule.objective": "l2_squared",
            },
            "finetune.methods: chosen_straightened alone, but schedule asks for no steps beside",
        ),
        ({"finetune.lora_rank": 0}, "finetune.lora_rank: 0 found; input should be greater than"),
        ({"teacher.training.learning_rate": -1}, "teacher.training.learning_rate: -1 found"),
        (
            {"data.source": "cifar"},
            "data.source: 'cifar' found; input should be 'digits', 'folder', ",
        ),
        ({"evaluate.samples": 20}, "evaluate: kid_subset_size 32 is above the number of samples"),
        ({"evaluate.reference_samples": 1600}, "evaluate.reference_samples: 1600, but 1527 of the"),
        ({"data.source": "folder", "data.path": "nowhere"}, "nowhere: no such folder"),
        ({"data.source": "folder"}, "inputs/images: no images in it"),
        ({"data.source": "npy"}, "inputs/images/images.npy: no such file; a folder with"),
        ({"data.source": "npz"}, "inputs/images: no such file; an .npz file needed"),
        ({"data.source": "parquet"}, "inputs/images: no .parquet files in it"),
        ({"data.source": "torchvision"}, "data: dataset is null, but source torchvision needs"),
        (
            {"data.source": "torchvision", "data.dataset": "cifar10"},
            "cifar10: no data set of torchvision with a root; close to it: CIFAR10",
        ),
        (
            {"data.source": "torchvision", "data.dataset": "MNIST", "data.path": "nowhere"},
            "nowhere: no such folder; the root of torchvision's MNIST needed",
        ),
        ({"data.image_size": 0}, "data.image_size: 0 found; input should be greater than or"),
        ({"teacher.source": "checkpoint"}, "inputs/teacher/card.json: no such file"),
        ({"features.extractor": "inception"}, "inputs/inception: 0 .pth files; exactly one"),
        (
            {"schedule.objective": "lpips"},
            "schedule.solver: ab2 with schedule.objective lpips; euler needed",
        ),
        (
            {"schedule.objective": "lpips", "schedule.solver": "euler"},
            "inputs/lpips/weights-vgg16-lpips.pth: no such file; that of https://",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_parameters(project: Project, finished: Project, change: dict, says: str) -> None:
    project.set(change)
    refused(project, finished, says)


def test_params_that_are_not_yaml_or_not_there(project: Project, finished: Project) -> None:
    path = project.folder / "params.yaml"
    path.write_text("budgets: [1, 2\nseed: 0\n")
    refused(project, finished, "params.yaml: not YAML")
    path.unlink()
    refused(project, finished, "params.yaml: no such file")


def test_dvc_repro_alone_refuses_a_misspelt_parameter_too(project: Project) -> None:
    project.set({"finetune.iteratoins": 5})
    done = project.run("dvc", "repro", code=255)
    assert "error: params.yaml: finetune.iteratoins: no such parameter" in done.stderr
    assert "Traceback" not in done.stderr


def images(project: Project, count: int = 130, size: int = 8) -> Path:
    """A folder of small random images in two classes, named as the data of the project."""
    folder = project.folder / "inputs" / "mine"
    draw = np.random.default_rng(0)
    for k in range(count):
        path = folder / f"class{k % 2}" / f"{k:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    project.set({"data.source": "folder", "data.path": "inputs/mine"})
    return folder


def test_images_of_mixed_size(project: Project, finished: Project) -> None:
    folder = images(project)
    Image.new("RGB", (9, 8)).save(folder / "class1" / "odd.png")
    done = project.run("boss", "repro", code=2)
    assert "odd.png: 9x8 pixels, but inputs/mine/class0/000.png has 8x8" in done.stderr
    assert project.outputs() == finished.outputs()


def test_images_of_mixed_size_are_resized_when_asked(project: Project) -> None:
    folder = images(project)
    Image.new("RGB", (19, 13)).save(folder / "class1" / "odd.png")
    project.set({"data.image_size": 4})
    project.run("dvc", "repro", "prepare")
    assert np.load(project.folder / "data" / "train.npy").shape == (111, 3, 4, 4)


def test_arrays_that_cannot_serve_are_refused_before_any_work(
    project: Project, finished: Project
) -> None:
    folder = project.folder / "inputs" / "mine"
    folder.mkdir()
    project.set({"data.source": "npy", "data.path": "inputs/mine"})
    np.save(folder / "images.npy", np.zeros((200, 8, 8, 3)))
    refused(project, finished, "inputs/mine/images.npy: dtype float64; uint8 (N, H, W), ")
    np.save(folder / "images.npy", np.zeros((200, 8, 8, 3), np.uint8))
    refused(project, finished, "classifier needs labels, and the images in inputs/mine (npy)")
    np.save(folder / "labels.npy", np.zeros(199, np.int64))
    refused(project, finished, "inputs/mine/labels.npy: shape (199,) for 200 images; one label an")


def test_a_parquet_file_without_the_column(project: Project, finished: Project) -> None:
    path = project.folder / "inputs" / "mine.parquet"
    pq.write_table(pa.table({"img": [b""] * 200, "label": [0] * 200}), path)
    project.set({"data.source": "parquet", "data.path": "inputs/mine.parquet"})
    refused(project, finished, "inputs/mine.parquet: no column image; its columns: img, label")
    path.write_bytes(path.read_bytes()[:-9])
    refused(project, finished, "inputs/mine.parquet: truncated or not a Parquet file")


def test_a_truncated_image(project: Project, finished: Project) -> None:
    folder = images(project)
    path = folder / "class1" / "007.png"
    path.write_bytes(path.read_bytes()[:120])
    done = project.run("boss", "repro", code=2)
    assert "error: inputs/mine/class1/007.png: truncated or not an image" in done.stderr
    assert "the outputs of the last good run are back" in done.stderr
    assert "Traceback" not in done.stderr
    assert project.outputs() == finished.outputs()


def test_a_folder_too_small_for_the_metric(project: Project, finished: Project) -> None:
    images(project, count=40)
    refused(project, finished, "evaluate.reference_samples: 100, but 34 of the 40 images")


def test_a_folder_of_good_images_is_prepared(project: Project) -> None:
    images(project)
    project.run("dvc", "repro", "prepare")
    assert np.load(project.folder / "data" / "train.npy").shape == (110, 3, 8, 8)
    labels = np.load(project.folder / "data" / "train_labels.npy")
    assert set(labels) == {0, 1}


def test_a_checkpoint_truncated_or_of_another_shape(project: Project, finished: Project) -> None:
    folder = project.folder / "inputs" / "mine"
    shutil.copytree(project.folder / "models" / "teacher", folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-50])
    project.set({"teacher.source": "checkpoint", "teacher.path": "inputs/mine"})
    refused(project, finished, "inputs/mine/model.safetensors: truncated or altered")

    weights.write_bytes(whole)
    card = (folder / "card.json").read_text()
    (folder / "card.json").write_text(card.replace('"channels": 1', '"channels": 3'))
    refused(project, finished, "inputs/mine/model.safetensors: first.weight has shape (8, 1, 3, 3)")


def test_training_that_diverges_says_at_which_step(project: Project, finished: Project) -> None:
    project.set({"teacher.training.learning_rate": 1.0, "teacher.training.gradient_clip": 1e30})
    path = project.folder / "boss_core" / "training" / "flow_matching.py"
    # Nothing that a schema would let through diverges in thirty steps: make it.
    path.write_text(
        path.read_text().replace(
            "return flow_matching_loss(", "return 1e38 * (step + 1) ** 9 * flow_matching_loss("
        )
    )
    done = project.run("boss", "repro", code=2)
    assert "error: training: the loss became inf at step " in done.stderr
    assert "Traceback" not in done.stderr
    assert project.outputs() == finished.outputs()


def test_a_full_disk(finished: Project, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    size = sum(p.stat().st_size for p in finished.folder.rglob("*") if p.is_file())
    options = f"size={size + (16 << 20)}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        project = finished.copy(small / "project")
        project.set({"trajectories.samples": 60_000})  # 61 MB of states
        done = project.run("boss", "repro", code=2)
        assert "error: .trajectories.part/states.npy: no space left on the disk" in done.stderr
        assert "Traceback" not in done.stderr
        assert project.outputs() == finished.outputs()
        assert not list(small.rglob("*.part"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        shutil.copy(ROOT / "params.yaml", folder)
        shutil.copytree(ROOT / "inputs", folder / "inputs")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        project, here = Project(folder), {"PYTHONPATH": str(ROOT)}
        project.run("boss", "check", env=here)  # writes nothing
        done = project.run("python", "-m", "flows.stages.check", code=2, env=here)
        assert done.stderr == (
            "error: results: read-only file system; a place that may be read and written needed\n"
        )
        done = project.run("boss", "run", code=2, env=here)
        assert done.stderr == (
            f"error: {folder}: may not be written to; a folder for the results needed\n"
        )
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
