"""The stages that train, killed and shared by processes, as commands in a small project."""

import contextlib
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from safetensors.numpy import load_file

from boss_core.checkpoints.folder import load_checkpoint
from boss_core.errors import InputError
from boss_core.io.pixels import from_uint8
from flows.config import load_params
from flows.measure.usage import read_usage
from flows.stages import teacher
from tests.helpers.checkout import ROOT
from tests.helpers.project import Project

TEACHER = ("python", "-m", "flows.stages.teacher")
STEPS = 120


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with its data and a teacher that nothing disturbed."""
    folder = tmp_path_factory.mktemp("stages") / "project"
    changed = {"compute.checkpoint_every": 20, "teacher.training.iterations": STEPS}
    project = Project.create(folder, changed)
    project.run("python", "-m", "flows.stages.prepare")
    project.run(*TEACHER)
    return project


def kill_at(project: Project, step: int, *command: str, label: str) -> None:
    """Start a stage and kill it as soon as its checkpoint of that step is there."""
    process = project.start(*command)
    path = project.folder / "build" / "training" / label / f"{step:09d}.safetensors"
    deadline = time.monotonic() + 100
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    said, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, said


def test_a_killed_teacher_goes_on_to_the_same_bytes(prepared: Project, tmp_path: Path) -> None:
    project = prepared.copy(tmp_path / "killed")
    expected = project.outputs()
    shutil.rmtree(project.folder / "models" / "teacher")
    (project.folder / "results/curves/teacher.csv").unlink()
    kill_at(project, 60, *TEACHER, label="teacher")
    assert not (project.folder / "models" / "teacher").exists()
    done = project.run(*TEACHER)
    assert "safetensors: going on after step " in done.stdout
    assert f"teacher: {STEPS} steps" in done.stdout
    assert project.outputs() == expected
    assert not (project.folder / "build/training/teacher").exists()
    # What the killed run took is not known, and what the other took is not all.
    assert read_usage("teacher", project.folder) == {}
    undisturbed = read_usage("teacher", prepared.folder)["training"]
    assert undisturbed["images"] == STEPS * 128


def test_a_ddpmpp_is_trained_as_a_teacher(
    prepared: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = prepared.copy(tmp_path / "ncsnpp")
    monkeypatch.chdir(project.folder)
    project.set({"teacher.config": "cifar10", "teacher.training.iterations": 2})
    with pytest.raises(InputError, match="cifar10 is for images 3x32x32, but the data has 1x8x8"):
        teacher.main(load_params())
    project.set({"teacher.conditional": True})
    with pytest.raises(InputError, match="cifar10, a network without classes"):
        teacher.main(load_params())
    config = project.folder / "inputs" / "teacher" / "small.json"
    config.parent.mkdir(exist_ok=True)
    published = project.folder / "boss_core/networks/configs/cifar10.json"
    text = published.read_text()
    for found, smaller in (
        ('"image_size": 32', '"image_size": 8'), ('"num_channels": 3', '"num_channels": 1'),
        ('"nf": 128', '"nf": 8'), ('"num_res_blocks": 4', '"num_res_blocks": 1'),
    ):  # fmt: skip
        assert found in text
        text = text.replace(found, smaller)
    config.write_text(text)
    project.set({
        "teacher.config": "inputs/teacher/small.json", "teacher.conditional": False,
        "teacher.flip": True, "teacher.training.iterations": 60,
        "teacher.training.learning_rate": 2e-3, "teacher.training.warmup": 5,
    })  # fmt: skip
    teacher.main(load_params())
    network, card = load_checkpoint(project.folder / "models" / "teacher")
    assert card.architecture == "ncsnpp"
    assert network.config.sample_shape == (1, 8, 8)
    losses = pd.read_csv(project.folder / "results/curves/teacher.csv")["validation_loss"]
    # A velocity of 0, with which training starts, errs by the mean square of data - noise.
    data = from_uint8(torch.from_numpy(np.load(project.folder / "data" / "test.npy")))
    assert losses.iloc[-1] < 0.8 * (1.0 + float(data.square().mean()))


def listens_at(pid: int) -> set[str]:
    """The addresses at which a process and those that it started wait for a connection."""
    found: set[str] = set()
    try:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                sockets = process.net_connections("tcp")
                found |= {s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN}
    except psutil.Error:  # it has ended
        pass
    return found


@pytest.mark.slow
@pytest.mark.long
def test_a_stage_starts_its_processes_itself(prepared: Project, tmp_path: Path) -> None:
    project = prepared.copy(tmp_path / "two")
    alone = pd.read_csv(project.folder / "results/curves/teacher.csv")
    project.set({"compute.processes": 2})
    process = project.start(*TEACHER)
    listening: set[str] = set()
    while process.poll() is None:
        listening |= listens_at(process.pid)
        time.sleep(0.2)  # they listen for seconds, and a look takes from what it looks at
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert said.count(f"teacher: {STEPS} steps in") == 1
    # Nobody who is elsewhere can tell them anything.
    assert listening <= {"127.0.0.1", "::1"}
    assert listening, "the processes talk by sockets, and none was seen"
    assert not (project.folder / "build/training/teacher").exists()
    together = pd.read_csv(project.folder / "results/curves/teacher.csv")
    assert list(alone["step"]) == list(together["step"])
    np.testing.assert_allclose(together["loss"], alone["loss"], rtol=2e-3)

    # As accelerate starts them.
    first = load_file(project.folder / "models/teacher/model.safetensors")
    shutil.rmtree(project.folder / "models/teacher")
    launch = ("accelerate", "launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    project.run(*launch, "--mixed_precision", "no", "--dynamo_backend", "no", *TEACHER[1:])
    again = load_file(project.folder / "models/teacher/model.safetensors")
    assert all(np.array_equal(first[name], again[name]) for name in first)

    diverging = ("python", "-m", "tests.helpers.diverging_teacher", "21", "1")
    done = project.run(*diverging, code=2, env={"PYTHONPATH": str(ROOT)})
    assert done.stderr.count("error: training: the loss became nan at step 21 of 120") == 1
    assert "Traceback" not in done.stderr
    project.set({"compute.processes": 3})
    done = project.run(*TEACHER, code=2)
    assert done.stderr.count("with compute.processes: 3; a multiple of that needed") == 1


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_finetuning_goes_on_to_the_same_bytes(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "finetune")
    project.set({"compute.checkpoint_every": 20, "finetune.training.iterations": 100})
    finetune = ("python", "-m", "flows.stages.finetune", "3")
    project.run(*finetune)
    expected = project.outputs()
    shutil.rmtree(project.folder / "models/student/3")
    # In its second training (Bellman's steps are the uniform ones here); the first is done.
    kill_at(project, 60, *finetune, label="finetune@3 chosen_straightened")
    done = project.run(*finetune)
    assert (
        "finetune@3 straightened_uniform/000000100.safetensors: going on after step 100"
        in done.stdout
    )
    assert "finetune@3 chosen_straightened/0000000" in done.stdout
    assert project.outputs() == expected
    assert read_usage("finetune-3", project.folder) == {}  # of both: the first was taken over
    assert not list((project.folder / "build/training").iterdir())
