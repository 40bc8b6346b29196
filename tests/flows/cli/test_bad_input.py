"""A user's mistake: one line that names it, exit code 2, and nothing lost."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from boss_core.errors import InputError
from flows.cli.check import check as check_command
from flows.config import load_params
from flows.stages import prepare
from flows.stages.check import check
from tests.helpers.checkout import ROOT
from tests.helpers.disks import OWN_MOUNTS, small_disk
from tests.helpers.project import Project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    return finished.copy(tmp_path / "project")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The parameters and inputs alone, in the folder that this process then is in."""
    monkeypatch.chdir(tmp_path)
    return Project.bare(tmp_path)


def refused(says: str) -> None:
    """What every run does first says it, in one line."""
    with pytest.raises(InputError) as error:
        check(load_params())
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"finetune.iteratoins": 5}, "params.yaml: finetune.iteratoins: no such parameter"),
        ({"evaluate.reference_samples": 1600}, "params.yaml: evaluate.reference_samples: 1600"),
    ],
)
def test_a_run_is_refused_before_any_work(
    project: Project, finished: Project, change: dict, says: str
) -> None:
    project.set(change)
    done = project.run("boss", "repro", code=2)
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {says}")
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
            "schedule.solver: 'rk45' found; input should be 'euler', 'ab2' or 'multistep'",
        ),
        (
            {"schedule.objective": "l1"},
            "schedule.objective: 'l1' found; input should be 'auto', 'l2_squared', ",
        ),
        ({"schedule.distance": "fid"}, "schedule.distance: 'fid' found; input should be "),
        ({"schedule.gamma": 0}, "schedule.gamma: 0 found; input should be greater than 0"),
        ({"schedule.samples": 10}, "schedule.samples: 10 found; input should be greater than or"),
        ({"schedule.budget": 4}, "schedule.budget: no such parameter; known here: solver, order"),
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
            {"schedule.objective": "uniform"},
            "schedule.objective: uniform with schedule.solver ab2; multistep needed",
        ),
        ({"schedule.order": 4}, "schedule.order: 4 found; input should be less than or equal to 3"),
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
def test_parameters(workspace: Project, change: dict, says: str) -> None:
    workspace.set(change)
    refused(says)


def test_params_that_are_not_yaml_or_not_there(workspace: Project) -> None:
    path = workspace.folder / "params.yaml"
    path.write_text("budgets: [1, 2\nseed: 0\n")
    refused("params.yaml: not YAML")
    path.unlink()
    refused("params.yaml: no such file")


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


def test_images_of_mixed_size(workspace: Project) -> None:
    folder = images(workspace)
    Image.new("RGB", (9, 8)).save(folder / "class1" / "odd.png")
    refused("odd.png: 9x8 pixels, but inputs/mine/class0/000.png has 8x8")


def test_a_check_says_what_it_has_looked_at(workspace: Project, capsys) -> None:
    images(workspace)  # of which 15 % are 20, 19.5 rounded
    check_command(presets=[], overrides=[])
    shown = capsys.readouterr().out.splitlines()
    assert shown[:4] == [
        "params.yaml: every name, type and range; budgets 1, 3; students: straightened_uniform,"
        " boss, chosen_straightened",
        "images: folder in inputs/mine: 130 of 8x8, in colour, 2 classes; 110 for training, 20 for"
        " testing",
        "what measures: classifier, second_classifier",
        "teacher: a U-Net, trained here for 30 steps",
    ]
    assert shown[-1].startswith("all right; not to be known before the run: ")


def test_images_of_mixed_size_are_resized_when_asked(workspace: Project) -> None:
    folder = images(workspace)
    Image.new("RGB", (19, 13)).save(folder / "class1" / "odd.png")
    workspace.set({"data.image_size": 4})
    prepare.main(load_params())
    assert np.load("data/train.npy").shape == (111, 3, 4, 4)


def test_arrays_that_cannot_serve(workspace: Project) -> None:
    folder = workspace.folder / "inputs" / "mine"
    folder.mkdir()
    workspace.set({"data.source": "npy", "data.path": "inputs/mine"})
    np.save(folder / "images.npy", np.zeros((200, 8, 8, 3)))
    refused("inputs/mine/images.npy: dtype float64; uint8 (N, H, W), ")
    np.save(folder / "images.npy", np.zeros((200, 8, 8, 3), np.uint8))
    refused("classifier needs labels, and the images in inputs/mine (npy)")
    np.save(folder / "labels.npy", np.zeros(199, np.int64))
    refused("inputs/mine/labels.npy: shape (199,) for 200 images; one label an")


def test_a_parquet_file_without_the_column(workspace: Project) -> None:
    path = workspace.folder / "inputs" / "mine.parquet"
    pq.write_table(pa.table({"img": [b""] * 200, "label": [0] * 200}), path)
    workspace.set({"data.source": "parquet", "data.path": "inputs/mine.parquet"})
    refused("inputs/mine.parquet: no column image; its columns: img, label")
    path.write_bytes(path.read_bytes()[:-9])
    refused("inputs/mine.parquet: truncated or not a Parquet file")


def test_a_truncated_image(project: Project, finished: Project) -> None:
    folder = images(project)
    path = folder / "class1" / "007.png"
    path.write_bytes(path.read_bytes()[:120])
    done = project.run("boss", "repro", code=2)
    assert "error: inputs/mine/class1/007.png: truncated or not an image" in done.stderr
    assert "the outputs of the last good run are back" in done.stderr
    assert "Traceback" not in done.stderr
    assert project.outputs() == finished.outputs()


def test_a_folder_too_small_for_the_metric(workspace: Project) -> None:
    images(workspace, count=40)
    refused("evaluate.reference_samples: 100, but 34 of the 40 images")


def test_a_folder_of_good_images_is_prepared(workspace: Project) -> None:
    images(workspace)
    prepare.main(load_params())
    assert np.load("data/train.npy").shape == (110, 3, 8, 8)
    assert set(np.load("data/train_labels.npy")) == {0, 1}


def test_a_checkpoint_truncated_or_of_another_shape(finished: Project, workspace: Project) -> None:
    folder = workspace.folder / "inputs" / "mine"
    shutil.copytree(finished.folder / "models" / "teacher", folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()  # a link, or read-only, where DVC keeps it so
    weights.write_bytes(whole[:-50])
    workspace.set({"teacher.source": "checkpoint", "teacher.path": "inputs/mine"})
    refused("inputs/mine/model.safetensors: truncated or altered")

    weights.write_bytes(whole)
    card = (folder / "card.json").read_text()
    (folder / "card.json").write_text(card.replace('"channels": 1', '"channels": 3'))
    refused("inputs/mine/model.safetensors: first.weight has shape (8, 1, 3, 3)")


def test_training_that_diverges_says_at_which_step(project: Project, finished: Project) -> None:
    diverging = ("python", "-m", "tests.helpers.diverging_teacher", "5", "0")
    done = project.run(*diverging, code=2, env={"PYTHONPATH": str(ROOT)})
    assert "error: training: the loss became nan at step 5 of 30" in done.stderr
    assert "Traceback" not in done.stderr
    assert project.outputs() == finished.outputs()


# On a disk that ends with the process: of 16 MB beside the project.
FILL = """
import sys
from pathlib import Path
from tests.helpers.project import Project
finished, folder = Project(Path(sys.argv[1])), Path(sys.argv[2])
project = finished.copy(folder / "project")
project.set({"trajectories.samples": 60_000})  # 61 MB of states
done = project.run("boss", "repro", code=2)
assert "error: .trajectories.part/states.npy: no space left on the disk" in done.stderr
assert "Traceback" not in done.stderr
assert project.outputs() == finished.outputs()
assert not list(folder.rglob("*.part"))
"""


def test_a_full_disk(finished: Project, tmp_path: Path) -> None:
    size = sum(p.stat().st_size for p in finished.folder.rglob("*") if p.is_file())
    mount = small_disk(tmp_path / "small", str(size + (16 << 20)))
    fill = (sys.executable, "-c", FILL, str(finished.folder), str(tmp_path / "small"))
    Project(ROOT).run(*OWN_MOUNTS, f'{mount}; exec "$@"', "sh", *fill)


def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    script = f"""set -e; {small_disk(folder, "1m")}; cd {folder}
        cp -r {ROOT}/params.yaml {ROOT}/inputs .; mount -o remount,ro {folder}
        boss check > /dev/null  # writes nothing
        set +e; python -m flows.stages.check; echo $?; boss run; echo $?"""
    done = Project(tmp_path).run(*OWN_MOUNTS, script, env={"PYTHONPATH": str(ROOT)})
    assert done.stdout == "2\n2\n"
    assert done.stderr == (
        "error: results: read-only file system; a place that may be read and written needed\n"
        f"error: {folder}: may not be written to; a folder for the results needed\n"
    )
