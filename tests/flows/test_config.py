"""What params.yaml and --set may hold: one meaning for every reader, one line for the rest."""

import shutil
from pathlib import Path

import pytest

from boss_core.errors import InputError
from boss_core.networks.classifier import ClassifierConfig
from boss_core.networks.unet import UNetConfig
from flows.config import load_params, network_settings
from flows.orchestration.request import check_overrides
from tests.helpers.checkout import ROOT

TEXT = (ROOT / "params.yaml").read_text()


def refused(path: Path, content: str | bytes) -> str:
    """What is said of a params.yaml with that content: one line, not too long."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        load_params(path)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 500
    assert said.startswith(f"{path}: ")
    return said.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("line", "written", "says"),
    [
        ("seed: 0", "seed: 010", "seed: 8 in YAML 1.1, but 10 in YAML 1.2, as DVC reads it; a num"),
        ("seed: 0", "seed: 1:30", "seed: 90 in YAML 1.1, but '1:30' in YAML 1.2"),
        ("seed: 0", "seed: 0o10", "seed: '0o10' in YAML 1.1, but 8 in YAML 1.2"),
        ("seed: 0", "seed: 09", "seed: '09' in YAML 1.1, but 9 in YAML 1.2"),
        (
            "augment: false", "augment: yes",
            "features.augment: True in YAML 1.1, but 'yes' in YAML 1.2, as DVC reads it; true, or"
            " 'yes' in quotes, needed",
        ),
        ("augment: false", "augment: off", "features.augment: False in YAML 1.1, but 'off' in"),
        (
            "learning_rate: 2.0e-3", "learning_rate: 1e-5",
            "features.training.learning_rate: '1e-5' in YAML 1.1, but 1e-05 in YAML 1.2, as DVC"
            " reads it; 1.0e-05 needed",
        ),
        ("budgets: [2, 4, 6, 8]", "budgets: [2, 010]", "budgets.1: 8 in YAML 1.1, but 10 in YAML"),
        ("path: inputs/images", "path: no", "data.path: False in YAML 1.1, but 'no' in YAML 1.2"),
        ("seed: 0", "seed: 0\nseed: 1", "not YAML to DVC: while constructing a mapping"),
        ("seed: 0", "1: 2\nseed: 0", "1: 1 found; keys should be strings"),
        ("seed: 0", f"seed: {2**64}", f"seed: {2**64} found; input should be less than 4294967296"),
        ("seed: 0", f"seed: {'9' * 5000}", "not YAML: Exceeds the limit (4300 digits)"),
        ("seed: 0", f"seed: {'[' * 5000}", "nested too deeply to be read; NAME: VALUE needed"),
        ("seed: 0", "seed: &a [*a]", "seed: [[[[[[[...]]]]]]] found; input should be a valid int"),
        ("seed: 0", "seed: 2026-13-45", "not YAML: month must be in 1..12"),
        ("seed: 0", "seed: !!python/object:os.system {}", "not YAML: could not determine a const"),
        (
            "base_channels: 16", f"base_channels: {8 * 10**30}",
            f"teacher.base_channels: {8 * 10**30} found; input should be less than or equal to",
        ),
        (
            "iterations: 1400", f"iterations: {10**30}",
            f"teacher.training.iterations: {10**30} found; input should be less than or equal to",
        ),
        ("samples: 300", f"samples: {10**30}", f"cost.samples: {10**30} found; auto,"),
        ("seed: 0", f"seed: '{'x' * 10_000}'", "seed: 'xxxx"),
        (
            "channel_multipliers: [1, 2, 2]", "channel_multipliers: [0]",
            "teacher.channel_multipliers.0: 0 found; input should be greater than or equal to 1",
        ),
        (
            "validation_fraction: 0.1", "validation_fraction: 0.9999",
            "trajectories: validation_fraction 0.9999 of 1200 samples leaves none to train on",
        ),
        ("reference_samples: 1500", "reference_samples: 3", "evaluate.reference_samples: 3 found;"),
    ],
    ids=lambda value: value[:24],
)  # fmt: skip
def test_a_value_that_means_two_things_or_nothing(
    line: str, written: str, says: str, tmp_path: Path
) -> None:
    assert line in TEXT
    said = refused(tmp_path / "params.yaml", TEXT.replace(line, written, 1))
    assert said.startswith(says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty; parameters as NAME: VALUE needed"),
        (b"# nothing\n", "empty; parameters"),
        (b"- 1\n- 2\n", "[1, 2] found; parameters as NAME: VALUE needed"),
        (b"42", "42 found; parameters"),
        (TEXT.encode("utf-16"), "not in UTF-8 (byte 0); that needed"),
        (TEXT.replace("inputs/images", "inputs/été").encode("latin-1"), "not in UTF-8 (byte"),
        (b"seed: [1, 2\n", "not YAML: while parsing a flow sequence"),
        (b"\x00\x01\x02", "not YAML: unacceptable character"),
    ],
)
def test_a_file_that_holds_no_parameters(content: bytes, says: str, tmp_path: Path) -> None:
    assert refused(tmp_path / "params.yaml", content).startswith(says)


def test_what_both_readers_take_alike_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    same = TEXT.replace("seed: 0", "seed: 0x1F").replace("augment: false", "augment: True")
    path.write_bytes(b"\xef\xbb\xbf" + same.replace("samples: 1200", "samples: 1_200").encode())
    params = load_params(path)
    assert (params.seed, params.features.augment, params.trajectories.samples) == (31, True, 1200)


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(InputError, match=r"params\.yaml: Is a directory; a file that can be read"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "value",
    [
        "range(1,4)", "interval(0,1)", "glob(*)", "choice(1,2)", "1,2", "shuffle(1,2)",
        "tag(a,choice(1,2))", "sort(2,1)",
    ],
)  # fmt: skip
def test_a_sweep_is_one_line(value: str) -> None:
    says = f"--set: seed: '{value}' is a sweep over several values; one value, and a run for each"
    with pytest.raises(InputError) as caught:
        check_overrides(ROOT, [f"seed={value}"])
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("budgets=[range(1,3)]", "--set: budgets: '[range(1,3)]'; a value as YAML has it needed"),
        ("seed=range(1,", "--set: seed: 'range(1,' found; input should be a valid integer"),
        ("seed=" + "9" * 5000, "--set: seed: '9999"),
        ("seed=1:30", "--set: seed: 90 in YAML 1.1, but '1:30' in YAML 1.2"),
        ("features.augment=yes", "--set: features.augment: True in YAML 1.1, but 'yes' in YAML"),
        ("seed=${nothing}", "--set: seed: '${nothing}'; a value as YAML has it needed"),
        ("seed", "--set: 'seed'; NAME=VALUE needed"),
    ],
)
def test_a_change_that_cannot_be(change: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        check_overrides(ROOT, [change])
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_command_says_it_in_one_line_too(boss, tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    code, _, errors = boss("run", "--set", "seed=range(1,4)")
    assert code == 2
    assert errors.count("\n") == 1
    assert errors.startswith("error: --set: seed: 'range(1,4)' is a sweep")
    for value in ("010", "[" * 5000, "9" * 5000):
        (tmp_path / "params.yaml").write_text(f"seed: {value}\n")
        code, _, errors = boss("check")
        assert code == 2
        assert errors.startswith("error: params.yaml: ")
        assert errors.count("\n") == 1


def test_a_network_that_there_is_not_is_a_line_to_a_stage_without_check() -> None:
    wanted = {"channels": 1, "classes": None, "base_channels": 8, "blocks": 1}
    wanted |= {"attention_sizes": (), "channel_multipliers": (1, 2)}
    assert network_settings(UNetConfig, "teacher", image_size=8, **wanted).sample_shape == (1, 8, 8)
    with pytest.raises(InputError) as caught:
        network_settings(UNetConfig, "teacher", image_size=2, **wanted)
    assert str(caught.value) == (
        "params.yaml: teacher: no UNet of these parameters for this data: image_size: 2 found;"
        " input should be greater than or equal to 4"
    )
    with pytest.raises(InputError, match=r"features: no Classifier .* for this data: classes: 1 f"):
        network_settings(ClassifierConfig, "features", channels=1, classes=1, width=8, features=8)
