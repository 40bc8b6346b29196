"""Trainings that are killed, or shared by processes, against those that are neither."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.helpers.checkout import ROOT
from tests.helpers.disks import OWN_MOUNTS, small_disk
from tests.helpers.project import environment
from tests.helpers.trainings import here, largest_difference, started, steps, weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return here(folder)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, killed after step 34: its last checkpoints are of steps 20 and 30."""
    folder = tmp_path_factory.mktemp("killed")
    started(folder, kill_at=34, code=-signal.SIGKILL)
    assert steps(folder) == [20, 30]
    return folder


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to


def test_a_full_disk_costs_the_checkpoints_alone(whole: Path, tmp_path: Path) -> None:
    mount = small_disk(tmp_path / "checkpoints", "20k")
    train = f"{sys.executable} -m tests.helpers.trainer {tmp_path}"
    done = subprocess.run(
        [*OWN_MOUNTS, f"{mount}; {train}; echo $?; ls -A {tmp_path}/checkpoints"],
        cwd=ROOT, env=environment({"OMP_NUM_THREADS": "1"}), capture_output=True, text=True,
    )  # fmt: skip
    *said, code = done.stdout.splitlines()
    assert code == "0", done.stderr
    assert len(said) == 4  # after steps 10, 20, 30 and 40
    assert all(
        "0.safetensors: no checkpoint (" in line
        and "No space left on device" in line
        and "the training goes on without it" in line
        for line in said
    )
    assert largest_difference(weights(whole), weights(tmp_path)) == 0


def test_a_killed_run_goes_on_to_the_same_bits(
    whole: Path, killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(killed, tmp_path)
    done = started(folder)
    assert "000000030.safetensors: going on after step 30" in done.stdout
    found, expected = (f / "result.safetensors" for f in (folder, whole))
    assert found.read_bytes() == expected.read_bytes()
    curve = json.loads((folder / "curve.json").read_text())
    assert curve == json.loads((whole / "curve.json").read_text())
    assert [row["step"] for row in curve] == [7, 14, 21, 28, 35, 40]
    assert steps(folder) == [30, 40] == steps(whole)
    # What is left when the training has ended, until its result is stored, is its end.
    here(folder)
    assert "going on after step 40" in capsys.readouterr().out
    assert largest_difference(weights(folder), weights(whole)) == 0


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(
    whole: Path, killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(killed, tmp_path)
    last = folder / "checkpoints" / "000000030.safetensors"
    last.write_bytes(last.read_bytes()[:-1000])
    here(folder)
    said = capsys.readouterr().out
    assert f"{last}: truncated or altered" in said
    assert "000000020.safetensors: going on after step 20" in said
    assert largest_difference(weights(folder), weights(whole)) == 0
    assert steps(folder) == [30, 40]


@pytest.mark.parametrize(
    ("change", "value"), [("learning_rate", 2e-3), ("data_seed", 1), ("start_seed", 1)]
)
def test_a_checkpoint_of_another_run_is_never_used(
    change: str, value: float, killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {change: value, "iterations": 40}
    folder = here(copied(killed, tmp_path / "one"), **given)
    said = capsys.readouterr().out
    assert said.count("of another run") == 2
    assert "going on" not in said
    assert steps(folder) == [30, 40]
    assert largest_difference(weights(folder), weights(here(tmp_path / "other", **given))) == 0


def test_two_processes_train_the_network_of_one(whole: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    started(both, processes=2)
    gradients = [load_file(folder / "gradient.safetensors") for folder in (both, whole)]
    assert largest_difference(*gradients) < 1e-12
    assert max(float(g.abs().max()) for g in gradients[0].values()) > 0.1
    assert largest_difference(weights(both), weights(whole)) < 1e-8
    curve, expected = (json.loads((f / "curve.json").read_text()) for f in (both, whole))
    for row, other in zip(curve, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    assert steps(both) == [30, 40]


@pytest.mark.slow
def test_two_processes_go_on_for_one_and_one_for_two(
    whole: Path, killed: Path, tmp_path: Path
) -> None:
    from_two = tmp_path / "from two"
    from_one = copied(killed, tmp_path / "from one")
    assert started(from_one, processes=2).stdout.count("going on after step 30") == 1
    assert largest_difference(weights(from_one), weights(whole)) < 1e-8
    started(from_two, processes=2, kill_at=34, code=1)
    assert steps(from_two) == [20, 30]
    here(from_two)
    assert largest_difference(weights(from_two), weights(whole)) < 1e-8
    curve, expected = (json.loads((f / "curve.json").read_text()) for f in (from_two, whole))
    for row, other in zip(curve, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
@pytest.mark.long
def test_what_one_process_cannot_go_on_with_stops_all(tmp_path: Path) -> None:
    done = started(tmp_path / "nan", processes=2, code=1, nan_at=9)
    assert done.stderr.count("InputError: training: the loss became nan at step 9 of 40") == 2
    assert not (tmp_path / "nan" / "result.safetensors").exists()
    done = started(tmp_path / "shares", processes=3, code=1)
    assert "batch_size 8 on 3 processes; a multiple of 3 needed" in done.stderr
