"""What `boss check` lets through ends no stage with an error, whatever the parameters and data."""

import shutil
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from boss_core.checkpoints.folder import save_checkpoint
from boss_core.errors import InputError
from boss_core.networks.unet import UNet, UNetConfig
from flows import paths
from flows.config import load_params
from flows.stages import check
from tests.helpers.checkout import ROOT
from tests.helpers.draws_of_parameters import draw_parameters, write_data, write_parameters
from tests.helpers.stages import run_all


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("drawn")
    return folder, write_data(folder)


@pytest.fixture
def project(inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A folder to work in, with the data sets; the parameters that name them."""
    folder, data = inputs
    (tmp_path / "inputs").symlink_to(folder / "inputs")
    monkeypatch.chdir(tmp_path)
    return data


def passes_or_is_refused(change: dict[str, Any]) -> bool:
    """Whether `check` lets the parameters through, with which every stage then has to work."""
    write_parameters(Path("params.yaml"), change)
    try:
        params = load_params()
        check.check(params)
    except InputError:
        return False
    for folder in paths.OUTPUTS:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        run_all(params)
    except Exception as error:
        pytest.fail(f"{change}: passes check, then {error!r}")
    return True


def draw_until(passed: int, data: list[dict[str, Any]], *, first: int) -> None:
    """Draws from the seed ``first`` on, until so many are let through."""
    for seed in count(first):
        passed -= passes_or_is_refused(draw_parameters(np.random.default_rng(seed), data))
        if not passed:
            return


def test_what_check_lets_through_ends_no_stage_with_an_error(project) -> None:
    draw_until(2, project, first=0)


@pytest.mark.long
@pytest.mark.slow
def test_the_same_of_many_more(project) -> None:
    draw_until(9, project, first=1000)


def test_images_that_are_not_square_go_through_the_whole_pipeline(project) -> None:
    """12 wide and 8 high, in colour; with attention at both levels, by their longer side."""
    size = {"teacher.attention_sizes": [12, 6], "data.source": "folder"}
    assert passes_or_is_refused(size | {"data.path": "inputs/photographs"})
    assert np.load("data/train.npy").shape[1:] == (3, 8, 12)
    card = yaml.safe_load(Path("models/teacher/card.json").read_text())
    assert (card["config"]["image_size"], card["config"]["image_width"]) == (8, 12)


def test_attention_at_no_level_is_said(project, capsys: pytest.CaptureFixture[str]) -> None:
    photographs = {"data.source": "folder", "data.path": "inputs/photographs"}
    for sizes, says in (
        ([6, 12], ""),
        ([16, 6, 8], "check: teacher.attention_sizes: 8, 16 of none of the levels, 12, 6 pixels: "),
    ):
        write_parameters(Path("params.yaml"), photographs | {"teacher.attention_sizes": sizes})
        check.check(load_params())
        assert capsys.readouterr().out.partition("no attention")[0] == says


def test_a_teacher_whose_paths_are_straight_costs_nothing(project) -> None:
    """The last layer of a new network is 0: every cost is, and the report shows it."""
    teacher = {"teacher.source": "checkpoint", "teacher.path": "inputs/grey_teacher"}
    assert passes_or_is_refused(teacher | {"data.source": "npz", "data.path": "inputs/grey.npz"})
    with np.load("results/cost.npz") as file:
        assert (file["cost"] == 0).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"data.path": "inputs/one_class.npz"},
            "params.yaml: features.extractor: classifier needs two classes or more, and the images"
            " in inputs/one_class.npz (npz) are of one",
        ),
        (
            {"data.path": "inputs/unlabelled.npz"},
            "params.yaml: features.extractor: classifier needs labels, and the images in"
            " inputs/unlabelled.npz (npz) have none; imagenet and inception need none",
        ),
        (
            {"data.path": "inputs/sevens.npz"},
            "params.yaml: features.extractor: classifier needs two classes or more",
        ),
        (
            {"data.path": "inputs/identifiers.npz"},
            "inputs/identifiers.npz: labels: label 29054230 found; classes numbered from 0, below",
        ),
        (
            {"data.path": "inputs/tiny.npz"},
            "params.yaml: teacher.channel_multipliers: 2 levels halve images 1 times, and these"
            " are 2x2; sides of 4 or more that are multiples of 2",
        ),
        (
            {"data.image_size": 12, "teacher.channel_multipliers": [1, 1, 1, 1]},
            "params.yaml: teacher.channel_multipliers: 4 levels halve images 3 times, and these"
            " are 12x12; sides of 4 or more that are multiples of 8",
        ),
        (
            {"data.path": "inputs/odd.npz"},
            "params.yaml: teacher.channel_multipliers: 2 levels halve images 1 times, and these"
            " are 5x7",
        ),
        (
            {"data.source": "folder", "data.path": "inputs/mixed"},
            "inputs/mixed/class0/15.png: 9x9 pixels, but inputs/mixed/class0/0.png has 12x8",
        ),
        (
            {"data.test_fraction": 0.01},
            "params.yaml: data.test_fraction: 0.01 of 60 images keeps 1 for testing; a share that",
        ),
        (
            {"teacher.config": "cifar10"},
            "params.yaml: teacher.config: cifar10 is for images 3x32x32, but the data has 1x8x8",
        ),
        (
            {"teacher.source": "checkpoint", "teacher.path": "wide"},
            "params.yaml: teacher.path: wide is for images 1x8x16, but the data has 1x8x8",
        ),
        (
            {
                "features.network": "resnet",
                "features.training.batch_size": 1,
                "data.image_size": 4,
            },
            "params.yaml: features.training.batch_size: 1 for a process with images of 4x4",
        ),
        (
            {"teacher.channel_multipliers": [1, 1, 1, 1]},
            "params.yaml: teacher.base_channels: 8 with 4 levels for images of 8x8, of which the"
            " last is one pixel of 8 channels",
        ),
        (
            {
                "features.training.batch_size": 1,
                "data.image_size": 4,
                "evaluate.judges": ["second_classifier"],
            },
            "params.yaml: features.training.batch_size: 1 for a process with images of 4x4, of"
            " which resnet's last layers keep a single pixel to normalise; 2 or more, or"
            " evaluate.judges without second_classifier, needed",
        ),
        (
            {
                "data.path": "inputs/unlabelled.npz",
                "features.extractor": "inception",
                "evaluate.judges": ["second_classifier"],
            },
            "params.yaml: evaluate.judges: second_classifier needs labels, and the images in"
            " inputs/unlabelled.npz (npz) have none; imagenet and inception need none",
        ),
        (
            {"evaluate.judges": ["inception"]},
            "inputs: 0 .pth files; exactly one, the Inception weights of torch-fidelity, needed",
        ),
        ({"device": "cuda"}, "params.yaml: device: cuda, but torch finds no GPU"),
    ],
    ids=lambda value: ",".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_a_stage_would_refuse(change: dict, says: str, project, monkeypatch) -> None:
    if change.get("teacher.source") == "checkpoint":
        config = UNetConfig(
            image_size=8, image_width=16, channels=1, base_channels=8, channel_multipliers=(1,),
            blocks=1, attention_sizes=(),
        )  # fmt: skip
        save_checkpoint(Path("wide"), UNet(config))
    if "device" in change:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    write_parameters(
        Path("params.yaml"), {"data.source": "npz", "data.path": "inputs/grey.npz"} | change
    )
    with pytest.raises(InputError) as caught:
        check.check(load_params())
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize("name", ["data.path", "features.path", "teacher.path", "schedule.lpips"])
@pytest.mark.parametrize(
    ("path", "output"),
    [
        ("models/teacher", "models"),
        ("models/student/3/boss", "models"),
        ("./data", "data"),
        ("link", "models"),
        (".", "data"),
    ],
)
def test_the_pipelines_own_output_is_no_input(name: str, path: str, output: str, project) -> None:
    Path("models/teacher").mkdir(parents=True)
    Path("link").symlink_to("models/teacher")
    write_parameters(Path("params.yaml"), {name: path})
    with pytest.raises(InputError) as caught:
        check.check(load_params())
    assert str(caught.value).startswith(
        f"params.yaml: {name}: {Path(path)}: what the pipeline makes itself, in {output}/, and so"
    )


def test_the_outputs_are_those_of_the_stages() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    outs = {Path(out).parts[0] for s in stages for out in s.get("outs", []) + s.get("metrics", [])}
    assert outs == {path.name for path in paths.OUTPUTS} - {"build"}
