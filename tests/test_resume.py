"""Trainings that are killed, or shared by processes, against those that are neither."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.project import environment


def trainer(
    folder: Path, *, processes: int = 1, code: int = 0, **given: float
) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m"]
    if processes > 1:
        command += [
            "torch.distributed.run", "--nproc-per-node", str(processes), "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "localhost:0", "-m",
        ]  # fmt: skip
    command += ["tests.trainer", str(folder), *(f"{k}={v}" for k, v in given.items())]
    done = subprocess.run(
        command, cwd=ROOT, env=environment({"OMP_NUM_THREADS": "1"}), capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def result(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "result.safetensors")


def steps(folder: Path) -> list[int]:
    """Of the checkpoints that are there."""
    return sorted(int(path.stem) for path in (folder / "checkpoints").iterdir())


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    trainer(folder)
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, killed after step 34: its last checkpoints are of steps 20 and 30."""
    folder = tmp_path_factory.mktemp("killed")
    trainer(folder, kill_at=34, code=-signal.SIGKILL)
    assert steps(folder) == [20, 30]
    return folder


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to


def test_a_killed_run_goes_on_to_the_same_bits(whole: Path, killed: Path, tmp_path: Path) -> None:
    folder = copied(killed, tmp_path)
    done = trainer(folder)
    assert "000000030.safetensors: going on after step 30" in done.stdout
    assert (folder / "result.safetensors").read_bytes() == (
        whole / "result.safetensors"
    ).read_bytes()
    curve = json.loads((folder / "curve.json").read_text())
    assert curve == json.loads((whole / "curve.json").read_text())
    assert [row["step"] for row in curve] == [7, 14, 21, 28, 35, 40]
    assert steps(folder) == [30, 40] == steps(whole)
    # What is left when the training has ended, until its result is stored, is its end.
    again = trainer(folder)
    assert "going on after step 40" in again.stdout
    assert largest_difference(result(folder), result(whole)) == 0


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(
    whole: Path, killed: Path, tmp_path: Path
) -> None:
    folder = copied(killed, tmp_path)
    last = folder / "checkpoints" / "000000030.safetensors"
    last.write_bytes(last.read_bytes()[:-1000])
    done = trainer(folder)
    assert f"{last}: truncated or altered" in done.stdout
    assert "000000020.safetensors: going on after step 20" in done.stdout
    assert largest_difference(result(folder), result(whole)) == 0
    assert steps(folder) == [30, 40]


@pytest.mark.parametrize("change", ["learning_rate", "data_seed", "start_seed"])
def test_a_checkpoint_of_another_run_is_never_used(
    change: str, killed: Path, tmp_path: Path
) -> None:
    given = {change: 2e-3 if change == "learning_rate" else 1}
    folder = copied(killed, tmp_path / "one")
    done = trainer(folder, iterations=12, **given)
    assert done.stdout.count("of another run") == 2
    assert "going on" not in done.stdout
    assert steps(folder) == [10, 12]
    trainer(tmp_path / "other", iterations=12, **given)
    assert largest_difference(result(folder), result(tmp_path / "other")) == 0


def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    trainer(tmp_path / "one", bare_gradient=1)
    trainer(tmp_path / "two", processes=2, bare_gradient=1)
    one, two = result(tmp_path / "one"), result(tmp_path / "two")
    scale = max(float(g.abs().max()) for g in one.values())
    assert scale > 0.1
    assert largest_difference(one, two) < 1e-6 * scale


def test_two_processes_train_the_network_of_one_and_go_on_for_another(
    whole: Path, killed: Path, tmp_path: Path
) -> None:
    """40 Adam steps of 1e-3 at most, so weights that differ by 1e-5 took the same way."""
    both = tmp_path / "both"
    trainer(both, processes=2)
    assert 0 < largest_difference(result(both), result(whole)) < 1e-5
    curve, expected = (json.loads((f / "curve.json").read_text()) for f in (both, whole))
    for row, other in zip(curve, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    assert steps(both) == [30, 40]

    from_one = copied(killed, tmp_path / "from one")
    assert trainer(from_one, processes=2).stdout.count("going on after step 30") == 1
    assert largest_difference(result(from_one), result(whole)) < 1e-5

    from_two = tmp_path / "from two"
    trainer(from_two, processes=2, kill_at=34, code=1)
    assert steps(from_two) == [20, 30]
    assert "going on after step 30" in trainer(from_two).stdout
    assert largest_difference(result(from_two), result(whole)) < 1e-5


def test_a_loss_that_is_not_finite_in_one_process_stops_all(tmp_path: Path) -> None:
    done = trainer(tmp_path, processes=2, code=1, nan_at=9)
    assert done.stderr.count("the loss became nan at step 9 of 40") >= 2
    assert not (tmp_path / "result.safetensors").exists()


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    done = trainer(tmp_path, processes=3, code=1)
    assert "batch_size 8 on 3 processes; a multiple of 3 needed" in done.stderr
