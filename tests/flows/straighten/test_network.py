"""``boss straighten --network`` as a stranger uses it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boss_core.bellman.recursion import optimal_paths
from boss_core.checkpoints.student import load_student
from boss_core.costs.matrix import estimate_cost_matrix
from boss_core.io.pixels import to_uint8
from boss_core.ode.noise import COSTS, EVALUATION, NoiseSource, sample_noise
from boss_core.ode.schedule import Schedule
from boss_core.ode.solvers import SOLVERS
from boss_core.ode.timesteps import uniform
from tests.helpers.checkout import ROOT
from tests.helpers.mixture import mixture_velocity
from tests.helpers.own_network import CONVENTIONS, Plain
from tests.helpers.project import environment

MODULE = """
import os, signal
import torch
from tests.helpers.own_network import CONVENTIONS, Plain, ScalarTime
calls = 0

def make_network():
    return CONVENTIONS["0 to 1000, reversed"][0](), call

def call(network, x, t):
    global calls
    calls += 1
    if calls == int(os.environ.get("KILLED_AT", -1)):
        os.kill(os.getpid(), signal.SIGKILL)
    return -network(x, timestep=1000 * (1 - t))

def plain():
    return Plain()

def conditional():
    return Plain(labels=True)

def infinite():
    return Plain(), lambda network, x, t: network(x, t) / 0

def embedding():
    return torch.nn.Embedding(4, 2), lambda network, x, t: x + network.weight[0]

class Images(torch.nn.Module):
    def __init__(self, labels=False):
        super().__init__()
        self.layer = torch.nn.Conv2d(4, 3, 3, padding=1)
        self.names = torch.nn.Embedding(5, 3) if labels else None

    def forward(self, time, x, *labels):
        times = time.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        y = self.layer(torch.cat([x, times], dim=1))
        return y + self.names(labels[0])[..., None, None] if labels else y

def images(labels=False):
    torch.manual_seed(0)
    return Images(labels), lambda network, x, t, *labels: network(t, x, *labels)

def labelled():
    return images(True)

def text():
    return "a network"

def velocity(x, t):
    return -x

def broken():
    raise RuntimeError("no weights here")
"""
ROLLED_OUT = ("--trajectories", 300, "--grid", 40)
TRAINED = (*ROLLED_OUT, "--iterations", 200, "--learning-rate", 0.005)


@pytest.fixture
def command(boss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``boss straighten`` with a network of a module that lies in the working directory."""
    (tmp_path / "own_code.py").write_text(MODULE)
    sys.modules.pop("own_code", None)

    def run(name: str, *options: object, shape: str = "2") -> tuple[int, str, str]:
        of_network = ("--network", f"own_code:{name}", "--shape", shape, "--device", "cpu")
        return boss("straighten", *of_network, *options)

    return run


def samples(velocity, schedule: Schedule) -> torch.Tensor:
    noise, _ = NoiseSource((2,), 0).draw(range(256), EVALUATION)
    return SOLVERS[schedule.solver](velocity, noise, schedule.timesteps)


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).square().sum(dim=1).mean())


def test_students_their_files_and_what_is_said_of_them(command, boss) -> None:
    code, out, err = command(
        "make_network", "--budget", 4, "--budget", 2, "--out", "fast", *TRAINED
    )
    assert (code, err) == (0, "")
    assert "K = 2, 4; 1,410 parameters, all weights trained" in out
    # 256 samples in 40 steps, and in K of three kinds.
    assert "4,000 to search, 12,000 for trajectories and 14,848 to compare" in out
    assert "training: 2 x 200 steps of 64 samples" in out
    assert "training, K = 4: 200 steps, about " in out
    report = json.loads(Path("fast/report.json").read_text())
    assert sorted(p.name for p in Path("fast").iterdir()) == ["2", "4", "report.json", "run.json"]

    noise = sample_noise(range(100), (2,), seed=COSTS)
    matrix = estimate_cost_matrix(mixture_velocity, noise, uniform(40), batch_size=100)
    paths = optimal_paths(matrix.cost, [2, 4])
    make, velocity = CONVENTIONS["0 to 1000, reversed"]
    fine = samples(mixture_velocity, Schedule(timesteps=tuple(uniform(40))))
    for row in report["students"]:
        budget = row["steps"]
        student = load_student(f"fast/{budget}", make(), velocity)
        assert student.schedule.indices == paths[budget].indices
        own = student.schedule
        even = Schedule(timesteps=tuple(uniform(budget)))
        expected = {
            "network, uniform steps": far(samples(mixture_velocity, even), fine),
            "network, these steps": far(samples(mixture_velocity, own), fine),
            "student": far(samples(student.velocity, own), fine),
        }
        assert row["distance"] == pytest.approx(expected, rel=1e-3)
        assert row["distance"]["student"] < 0.8 * min(list(expected.values())[:2])
        assert f"{expected['student']:.3g}"[:4] in out
        assert row["evaluations"] == budget
    code, text, _ = boss("export", "fast/4/schedule.json", "--to", "comfyui")
    assert (code, text.split()[0]) == (0, "1.0,")

    # Asked for the same, it is there; for something else, it is not written over.
    before = Path("fast/4/student.safetensors").stat().st_mtime_ns
    sys.modules.pop("own_code")
    code, again, _ = command(
        "make_network", "--budget", 4, "--budget", 2, "--out", "fast", *TRAINED
    )
    assert code == 0
    assert "fast has it already" in again
    assert again.splitlines()[-8:] == out.splitlines()[-8:]
    code, _, err = command(
        "make_network", "--budget", 4, "--out", "fast", *TRAINED, "--rank", 2, "--seed", 1
    )
    assert code == 2
    assert err.startswith("error: --out: fast holds another run (budgets, rank, seed differ); ")
    assert Path("fast/4/student.safetensors").stat().st_mtime_ns == before
    assert err.endswith("; another --out, or --replace, needed\n")
    options = ("--budget", 2, "--budget", 3, "--steps", "uniform", "--iterations", 1, "--replace")
    code, _, err = command("make_network", *options, "--out", "fast", "--grid", 6)
    assert (code, err) == (0, "")
    assert sorted(p.name for p in Path("fast").iterdir()) == ["2", "3", "report.json", "run.json"]
    assert load_student("fast/2", make(), velocity).schedule.timesteps == (0.0, 0.5, 1.0)
    # A note that somebody altered leads to no other folder, and is no traceback.
    Path("thesis").mkdir()
    note = json.loads(Path("fast/run.json").read_text()) | {"budgets": ["../thesis", 3, None]}
    Path("fast/run.json").write_text(json.dumps(note))
    assert command("make_network", *options, "--out", "fast", "--grid", 6)[0] == 0
    assert Path("thesis").is_dir()
    Path("fast/run.json").write_text("[1]")
    code, _, err = command("make_network", *options, "--out", "fast", "--grid", 6)
    assert (code, err) == (
        2, "error: fast/run.json: truncated or altered; another --out needed\n"
    )  # fmt: skip


@pytest.mark.parametrize("name", ["images", "labelled"])
def test_a_students_pictures(command, boss, name: str) -> None:
    """By the line that the training ends with: those of the student in Python."""
    options = ["--budget", 2, "--grid", 6, "--iterations", 3, "--samples", 4, "--trajectories", 4]
    classes = () if name == "images" else ("--classes", 5)
    code, out, _ = command(name, *options, *classes, "--out", "fast", shape="3x8x8")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("Pictures: boss ")]
    shown = line.removeprefix("Pictures: boss ").replace("fast/K", "fast/2").split()
    asked = ("-n", 4, "--seed", 7) + (("--label", 3) if classes else ())
    code, out, err = boss(*shown, *asked)
    assert (code, err) == (0, "")
    assert "samples.png: 4 images, 2 network evaluations each" in out
    own_code = sys.modules["own_code"]
    student = load_student("fast/2", *getattr(own_code, name)())
    labels = torch.full((4,), 3) if classes else None
    wanted = to_uint8(student.sample(sample_noise(range(4), (3, 8, 8), 7), labels))
    small = np.asarray(Image.open("samples.png"))[::4, ::4]  # of 8 pixels, enlarged to 32
    for k, (row, column) in enumerate(((0, 0), (0, 9), (9, 0), (9, 9))):
        tile = small[row : row + 8, column : column + 8]
        assert np.array_equal(tile, wanted[k].permute(1, 2, 0).numpy())
    # The network itself on the same steps makes others, and is known again by its weights.
    shown[shown.index("--checkpoint")] = "--schedule"
    code, _, err = boss(*shown, *asked, "--out", "teacher.png")
    assert (code, err) == (0, "")
    assert Path("teacher.png").read_bytes() != Path("samples.png").read_bytes()


def test_what_a_student_cannot_be_sampled_with(command, boss) -> None:
    options = ["--budget", 2, "--grid", 6, "--iterations", 1, "--samples", 4, "--trajectories", 4]
    assert command("images", *options, "--out", "fast", shape="3x8x8")[0] == 0
    network = ["--network", "own_code:images"]
    for given, says in (
        (["--checkpoint", "fast/2"], "--checkpoint: fast/2 is a student of `boss straighten"),
        ([*network, "--checkpoint", "fast/2"], "--shape: missing; the shape of a sample"),
        ([*network, "--velocity", "own_code:velocity"], "--network: own_code:images, with --velo"),
        ([*network, "--shape", "3x8x8"], "--schedule: missing; only a student brings its own"),
        ([*network, "--shape", "3x8x8", "--checkpoint", "fast"], "fast/card.json: no such file"),
        (["--velocity", "own_code:velocity", "--classes", 3], "--classes: only goes with --netw"),
    ):
        code, _, err = boss("sample", *given)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"error: {says}")
    assert no_files_but("fast")


def test_an_adapter_for_steps_of_a_file_and_another_solver(command) -> None:
    given = Schedule(timesteps=(0.0, 0.55, 1.0), solver="ab2")
    Path("steps").mkdir()
    Path("steps/2.json").write_text(given.to_json())
    code, out, err = command(
        "plain", "--budget", 2, "--steps", "steps", "--rank", 8, "--out", "fast", *TRAINED,
        "--learning-rate", 0.01,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "1,104 parameters trained, in an adapter: 78.3 % of the network's 1,410" in out
    student = load_student("fast/2", Plain())
    assert student.schedule == given
    assert student.rank == 8
    (row,) = json.loads(Path("fast/report.json").read_text())["students"]
    fine = samples(mixture_velocity, Schedule(timesteps=tuple(uniform(40))))
    assert row["distance"]["student"] == pytest.approx(
        far(samples(student.velocity, given), fine), rel=1e-3
    )
    assert row["distance"]["student"] < 0.8 * row["distance"]["network, these steps"]


def test_labels(command) -> None:
    code, _, err = command(
        "conditional",
        "--classes",
        3,
        "--budget",
        2,
        "--steps",
        "uniform",
        "--out",
        "fast",
        *TRAINED,
    )
    assert (code, err) == (0, "")
    (row,) = json.loads(Path("fast/report.json").read_text())["students"]
    assert row["distance"]["student"] < row["distance"]["network, these steps"]


# 8 evaluations look at the network, 3 x 40 roll it out, 3 x 40 are to compare with, and 200 steps
# with 4 x 2 of validation lead to the first checkpoint.
@pytest.mark.parametrize(
    "killed_at", [8 + 240 + 208 + 5, pytest.param(8 + 40 + 20, marks=pytest.mark.slow)]
)
def test_killed_it_goes_on_to_the_same_bytes(command, killed_at: int, tmp_path: Path) -> None:
    options = ("--budget", 2, "--steps", "uniform", *ROLLED_OUT, "--iterations", 210)
    shown = ["--network", "own_code:make_network", "--shape", "2", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.app", "straighten", *shown, *map(str, options),
         "--out", "fast"],
        cwd=tmp_path, capture_output=True, text=True,
        env=environment({"KILLED_AT": str(killed_at), "PYTHONPATH": str(ROOT)}),
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not Path("fast/2").exists()
    parts = sorted(path.name for path in Path("fast/work/trajectories/done").iterdir())
    assert parts == (["0"] if killed_at < 100 else ["0", "100", "200"])
    code, out, _ = command("make_network", *options, "--out", "fast")
    assert code == 0
    assert ("going on after step 200" in out) == (killed_at > 100)
    sys.modules.pop("own_code")
    assert command("make_network", *options, "--out", "whole")[0] == 0
    for name in ("student.safetensors", "card.json", "schedule.json"):
        assert Path(f"fast/2/{name}").read_bytes() == Path(f"whole/2/{name}").read_bytes()
    assert not Path("fast/work").exists()


def no_files_but(*names: str) -> bool:
    return {p.name for p in Path().iterdir() if p.name != "__pycache__"} == {"own_code.py", *names}


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("missing", (), "network: 'own_code:missing': "),
        ("text", (), "network: 'own_code:text' gives str; a torch.nn.Module, or one and velocity"),
        ("velocity", (), "takes (x, t); a function without arguments needed, which returns the"),
        ("broken", (), "own_code.py:54: RuntimeError: no weights here"),
        ("plain", ("--budget", 41), "--budget: 41; 1..40, the steps of --grid, needed"),
        ("plain", ("--solver", "heun"), "--solver: 'heun'; euler or ab2 needed"),
        ("plain", ("--steps", "none.json"), "--steps: none.json: no such file; search, uniform"),
        ("plain", ("--classes", 3), "takes (x: torch.Tensor, t: torch.Tensor, *labels"),
        ("conditional", (), "velocity: 'own_code:conditional': "),
        ("make_network", ("--classes", 3), "takes (network, x, t), and is called as (network, x,"),
        ("infinite", (), "velocity: not finite at t = 0.5 (sample 0); a network with finite"),
        ("embedding", ("--rank", 2), "--rank: the network has no Linear or convolution to adapt"),
        ("plain", ("--precision", "half"), "--precision: 'half'; float32 or bfloat16 needed"),
        ("plain", ("--device", "cuda:99"), "--device: cuda:99"),
    ],
)
def test_what_is_refused_before_anything_is_written(command, name, options, says) -> None:
    code, _, err = command(name, "--budget", 2, "--out", "fast", "--grid", 40, *options)
    if (name, options) == ("plain", ("--classes", 3)):  # which its signature has room for
        says = "velocity: 'own_code:plain': "
    assert code == 2
    assert says in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert no_files_but()


def test_shapes_folders_and_files_that_are_others(command) -> None:
    for shape, says in (
        ("3x", "--shape: '3x'; positive numbers"),
        ("3", "velocity: 'own_code:plain': "),
    ):
        code, _, err = command("plain", "--budget", 2, "--out", "fast", shape=shape)
        assert (code, err.count("\n")) == (2, 1)
        assert says in err
    Path("fast").mkdir()
    Path("fast/thesis.tex").touch()
    code, _, err = command("plain", "--budget", 2, "--out", "fast")
    assert (code, err) == (
        2, "error: --out: fast holds something else; a new or empty folder needed\n"
    )  # fmt: skip
    Path("4.json").write_text(Schedule(timesteps=tuple(uniform(4))).to_json())
    code, _, err = command("plain", "--budget", 2, "--steps", "4.json", "--out", "new")
    assert (code, err) == (
        2, "error: --budget: 2, but 4.json has 4 steps; these needed\n"
    )  # fmt: skip
    assert no_files_but("fast", "4.json")
