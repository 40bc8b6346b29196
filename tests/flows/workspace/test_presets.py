"""Presets: what each changes, what they are together, and what is said of a wrong one."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from boss_core.errors import InputError
from flows.config import load_params
from flows.workspace.experiment import override
from flows.workspace.presets import FOLDER, named_by, preset_overrides, read_preset
from tests.helpers.checkout import ROOT
from tests.helpers.project import Project

NAMES = sorted(path.stem for path in (ROOT / FOLDER).glob("*.yaml"))
OF_DATA = ["cifar10", "digits", "photos64"]  # smoke is of any
DEFAULTS = yaml.safe_load((ROOT / "params.yaml").read_text())


def changed(folder: Path, *names: str) -> dict[str, Any]:
    """Valid parameters: those of params.yaml with the presets over them."""
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    project = Project(folder)
    for name in names:
        project.set(read_preset(ROOT, name))
    load_params(folder / "params.yaml")
    return yaml.safe_load((folder / "params.yaml").read_text())


def test_there_are_those_that_the_help_names() -> None:
    assert NAMES == ["cifar10", "digits", "photos64", "smoke"]


def test_digits_are_the_parameters_as_they_come(tmp_path: Path) -> None:
    """Whatever other preset was there before: it names all that any of them changes."""
    assert changed(tmp_path, "digits") == DEFAULTS
    assert changed(tmp_path, "photos64", "smoke") != DEFAULTS
    assert changed(tmp_path, *NAMES, "digits") == DEFAULTS
    for name in NAMES:
        assert read_preset(ROOT, name).keys() <= read_preset(ROOT, "digits").keys()


@pytest.mark.parametrize(("first", "second"), itertools.permutations(OF_DATA, 2))
def test_a_preset_of_data_leaves_nothing_of_another(
    first: str, second: str, tmp_path: Path
) -> None:
    """As after `dvc exp apply`; but for widths of a U-Net where another network is asked for."""
    alone, after = changed(tmp_path, second), changed(tmp_path, first, second)
    for content in (alone, after):
        content["features"] = {"extractor": content["features"]["extractor"]}
        if content["teacher"]["config"] is not None:
            for name in ("base_channels", "channel_multipliers", "attention_sizes"):
                del content["teacher"][name]
    assert after == alone


def test_values_of_every_kind_arrive_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    own = {
        "budgets": [3, 5],
        "data": {"path": 'Bühne "1"/x, y', "label_column": None, "test_fraction": 0.25},
        "teacher": {"pipeline": {"size": "16x16", "guidance": 4.5}, "flip": True},
        "evaluate": {"judges": ["imagenet", "inception"]},
        "finetune": {"training": {"learning_rate": 2.0e-5}},
    }
    (tmp_path / FOLDER / "mine.yaml").write_text(yaml.safe_dump(own, allow_unicode=True))
    path = tmp_path / "params.yaml"
    shutil.copyfile(ROOT / "params.yaml", path)
    override(path, preset_overrides(tmp_path, ["mine"]))
    found = yaml.safe_load(path.read_text())
    assert found["budgets"] == [3, 5]
    assert found["data"] == DEFAULTS["data"] | own["data"]
    assert found["teacher"]["pipeline"]["size"] == "16x16"
    assert (found["teacher"]["pipeline"]["guidance"], found["teacher"]["flip"]) == (4.5, True)
    assert found["evaluate"]["judges"] == ["imagenet", "inception"]
    assert float(found["finetune"]["training"]["learning_rate"]) == 2.0e-5


def test_a_run_has_them_in_their_order(tmp_path: Path) -> None:
    found = preset_overrides(ROOT, ["photos64", "smoke"])
    path = tmp_path / "run.yaml"
    shutil.copyfile(ROOT / "params.yaml", path)
    override(path, found)
    assert yaml.safe_load(path.read_text()) == changed(tmp_path, "photos64", "smoke")
    assert found.count("budgets=[1, 3]") == 1
    assert 'data.source="folder"' in found
    assert "trajectories.samples=60" in found
    assert "trajectories.samples=500" not in found


@pytest.mark.parametrize(
    ("presets", "overrides", "name"),
    [
        (["photos64"], [], "photos64"),
        (["photos64", "smoke"], [], "photos64_smoke"),
        (["digits"], ["budgets=[4,6]"], "digits_budgets-4-6"),
        (["Bühne (1)"], [], "B-hne-1"),
        ([".-"], [], "changed"),
    ],
)
def test_an_experiment_is_named_by_the_preset(
    presets: list[str], overrides: list[str], name: str
) -> None:
    assert named_by(ROOT, presets, overrides) == name


@pytest.fixture
def project(boss, tmp_path: Path):
    """A folder with the presets, to call `boss` in."""
    Project.bare(tmp_path)
    return boss


@pytest.mark.parametrize("command", ["check", "run"])
def test_one_that_is_not_there_is_a_line(project, command: str) -> None:
    said = (
        "error: --preset: 'photos' is no file of configs/; one of cifar10, digits, photos64, smoke"
        " needed\n"
    )
    before = Path("params.yaml").read_bytes()
    for name in ("photos", "../params", "photos64.yaml"):
        assert project(command, "--preset", name) == (2, "", said.replace("photos'", f"{name}'"))
    assert Path("params.yaml").read_bytes() == before


def test_a_wrong_one_is_a_line_with_its_file(project) -> None:
    wrong = {
        "budgts: [1]": "configs/mine.yaml: budgts: no such parameter; known here: seed, device,",
        "data: 3": "--preset mine: data: 3 found; input should be a valid dictionary or",
        "budgets: [0]": "--preset mine: budgets.0: 0 found; input should be greater than or",
        "seed: 010": "configs/mine.yaml: seed: 8 in YAML 1.1, but 10 in YAML 1.2",
        "": "configs/mine.yaml: empty; parameters as NAME: VALUE needed",
        "data: {source: folder, path: inputs/lora}": "inputs/lora: no images in it; files",
    }
    for content, said in wrong.items():
        (FOLDER / "mine.yaml").write_text(content)
        code, out, errors = project("check", "--preset", "mine")
        assert (code, out) == (2, "")
        (line,) = errors.splitlines()
        assert line.startswith(f"error: {said}"), line
    shutil.rmtree(FOLDER)
    with pytest.raises(InputError, match="'smoke' is no file of configs/; a file in it needed"):
        read_preset(Path(), "smoke")


def test_check_says_what_it_looked_at(project) -> None:
    code, out, _ = project("check", "--preset", "smoke", "--set", "budgets=[5]")
    assert code == 0
    assert out.startswith(
        "params.yaml with --preset smoke --set: every name, type and range; budgets 5; students:"
    )
    assert "teacher: a U-Net, trained here for 30 steps" in out
    assert project("check", "--preset", "smoke", "--set", "budgets=[13]")[2].startswith(
        "error: --preset smoke --set: budgets: 13 is above cost.grid (12)"
    )
