"""One training on two machines: here two of torchrun's agents, which share neither folders nor
processes, and meet on a port of loopback."""

import contextlib
import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.checkout import ROOT
from tests.helpers.project import Project, environment
from tests.helpers.servers import free_port
from tests.helpers.trainings import here, largest_difference, started, steps, weights

# Of a whole training, on a busy machine.
PATIENCE = 240.0


def agent(
    node: int, port: int, folder: Path, *command: str, processes: int = 1
) -> "subprocess.Popen[str]":
    """The command of docs/training.md on one of two machines, in a folder of that machine's."""
    launcher = ["torchrun", "--nnodes", "2", "--node-rank", str(node)]
    launcher += ["--nproc-per-node", str(processes), "--master-addr", "127.0.0.1"]
    launcher += ["--master-port", str(port), "-m", *command]
    own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        launcher, cwd=folder, env=environment(own), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


@contextlib.contextmanager
def both(*agents: "subprocess.Popen[str]") -> Iterator[None]:
    """Ended, with all they started, whatever happens."""
    try:
        yield
    finally:
        for one in agents:
            lose(one)


def lose(node: "subprocess.Popen[str]") -> None:
    """As when the power goes. Its workers are process groups of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        of_agent = psutil.Process(node.pid)
        for process in [*of_agent.children(recursive=True), of_agent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    node.wait(10)


def said(node: "subprocess.Popen[str]", seconds: float = PATIENCE) -> str:
    return node.communicate(timeout=seconds)[0]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    return folders


def train(folders: tuple[Path, Path], processes: int, **given: float) -> list[str]:
    """Both machines to the end; what each has said."""
    pairs = [f"{name}={value}" for name, value in given.items()]
    port = free_port()
    nodes = [
        agent(node, port, ROOT, "tests.helpers.trainer", str(folder), *pairs, processes=processes)
        for node, folder in enumerate(folders)
    ]
    with both(*nodes):
        shown = [said(node) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], shown
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.long), 2])
def test_two_machines_train_the_network_of_one(
    two: tuple[Path, Path], tmp_path: Path, processes: int
) -> None:
    train(two, processes)
    one = tmp_path / "as many processes on one"
    started(one, processes=2 * processes)
    assert largest_difference(weights(two[0]), weights(one)) == 0
    assert largest_difference(weights(two[0]), weights(here(tmp_path / "alone"))) < 1e-8
    assert (two[0] / "curve.json").read_text() == (one / "curve.json").read_text()
    assert steps(two[0]) == [30, 40]
    assert not list(two[1].iterdir())  # files are written once


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("gone", [0, 1])
def test_a_machine_that_is_lost_ends_the_other(
    two: tuple[Path, Path], tmp_path: Path, gone: int
) -> None:
    """In a line, and both started again go on from the last checkpoint."""
    port = free_port()
    nodes = [
        agent(node, port, ROOT, "tests.helpers.trainer", str(folder), "iterations=300")
        for node, folder in enumerate(two)
    ]
    with both(*nodes):
        end = time.monotonic() + PATIENCE
        while not (two[0] / "checkpoints" / "000000030.safetensors").exists():
            assert time.monotonic() < end
            assert nodes[0].poll() is None, said(nodes[0])
            time.sleep(0.01)
        lose(nodes[gone])
        since = time.monotonic()
        shown = said(nodes[1 - gone], 60)
        assert nodes[1 - gone].returncode != 0
        print(f"ended after {time.monotonic() - since:.1f} s")
    assert "training: another of its processes has ended, or cannot be reached" in shown
    last = steps(two[0])[-1]
    shown = train(two, 1, iterations=300)[0]
    assert f"{last:09d}.safetensors: going on after step {last}" in shown
    alone = here(tmp_path / "alone", iterations=300)
    assert largest_difference(weights(two[0]), weights(alone)) < 1e-7
    assert not list(two[1].iterdir())


def hashes(folder: Path) -> dict[str, str]:
    """Of every file of a project that is no cache of Python's."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.long
@pytest.mark.slow
def test_a_stage_on_two_machines(finished: Project, tmp_path: Path) -> None:
    """The commands of docs/training.md: what the stage writes is on machine 0 alone, DVC takes it
    for its result, and other data on a machine is refused."""
    one = finished.copy(tmp_path / "one")
    one.set({"compute.processes": 2})
    one.run("dvc", "repro", "prepare")
    two = one.copy(tmp_path / "two")
    before = hashes(two.folder)
    stage = "flows.stages.teacher"

    def run() -> tuple[list[int], list[str]]:
        port = free_port()
        nodes = [agent(node, port, each.folder, stage) for node, each in enumerate((one, two))]
        with both(*nodes):
            shown = [said(node) for node in nodes]
        return [node.returncode for node in nodes], shown

    codes, shown = run()
    assert codes == [0, 0], shown
    assert hashes(two.folder) == before
    one.run("dvc", "commit", "--force", "teacher")
    there = one.outputs()
    assert "Running stage 'teacher'" not in one.run("dvc", "repro", "teacher").stdout
    assert one.outputs() == there
    (one.folder / "dvc.lock").unlink()  # as in a clone that pulls what machine 0 has pushed
    shutil.rmtree(one.folder / "models" / "teacher")
    shown_again = one.run("dvc", "repro", "teacher").stdout
    assert "Running stage 'teacher'" not in shown_again
    assert one.outputs() == there
    card = json.loads((one.folder / "models" / "teacher" / "card.json").read_text())
    assert card != json.loads((finished.folder / "models" / "teacher" / "card.json").read_text())
    alone = finished.copy(tmp_path / "alone")
    alone.set({"compute.processes": 2})
    alone.run("dvc", "repro", "teacher")
    assert alone.outputs() == there

    images = two.folder / "data" / "train.npy"
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.unlink()  # it may be a link into DVC's cache
    images.write_bytes(content)
    codes, shown = run()
    assert 0 not in codes
    assert "teacher: machine 1 has not the parameters, the data and the torch of" in shown[0]
    assert one.outputs() == there
