"""``boss straighten --pipeline``, on a small SD3 with text encoders in a folder."""

import copy
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from diffusers import StableDiffusion3Pipeline

from boss_core.interop.diffusers_pipelines import prompt_calls
from boss_core.interop.pipeline_lora import compile_blocks
from boss_core.interop.pipeline_sampling import sample_pipeline
from boss_core.io.files import sha256
from boss_core.ode.noise import EVALUATION
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import uniform
from flows.search.pipeline_call import PromptRow, SampleCalls
from flows.straighten.pipeline import as_called
from flows.straighten.request import Training
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.checkout import ROOT
from tests.helpers.memory_errors import MEMORY
from tests.helpers.once import made_once
from tests.helpers.standard_error import beside_bars

ANIMALS = [
    "cat",
    "dog",
    "fox",
    "owl",
    "bee",
    "ant",
    "cow",
    "pig",
    "hen",
    "elk",
    "bat",
    "rat",
    "eel",
    "cod",
    "emu",
    "yak",
]
WEIGHTS = "pytorch_lora_weights.safetensors"
OPTIONS = [
    "--pipeline", "pipe", "--prompts", "prompts.txt", "--guidance", "4", "--size", "16x16",
    "--dtype", "float32", "--grid", "8", "--batch-size", "16", "--trajectories", "64",
    "--rank", "4", "--learning-rate", "0.004", "--held-out", "6", "--device", "cpu",
]  # fmt: skip
Boss = Callable[..., tuple[int, str, str]]


def prepare(folder: Path) -> None:
    tiny.sd3_with_text(folder / "pipe")
    (folder / "prompts.txt").write_text("\n".join(ANIMALS) + "\n")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run for K = 2 and 3, and what it printed."""

    def make(folder: Path) -> None:
        prepare(folder)
        shown = subprocess.run(
            [sys.executable, "-m", "flows.cli.app", "straighten", *OPTIONS, "--iterations", "60",
             "--budget", "2", "--budget", "3", "--out", "fast"],
            cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr[-3000:]
        (folder / "shown").write_text(shown.stdout)
        (folder / "said").write_text(shown.stderr)

    return made_once(tmp_path_factory, "straightened", make)


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_it_says_what_it_will_take(run: Path) -> None:
    shown = (run / "shown").read_text()
    assert "2 network evaluations a step, a student 1 (guidance_scale=1.0)" in shown
    assert "rollout of 64 trajectories of 8 steps: 1,024 evaluations" in shown
    assert "K = 3: 60 steps of 16 samples" in shown
    assert "2,880 evaluations with gradients" in shown  # 60 x 16 x 3
    assert re.search(r"knot moves|enough|settled", shown)  # why the search ended
    assert "3 network evaluations a sample" in shown
    assert shown.count("is longer than the specified maximum") <= 1
    # At most 6 knots of two budgets, of 4 x 8 x 8 numbers of 4 bytes.
    (line,) = [each for each in shown.splitlines() if each.startswith("fast/rollout: ")]
    kept = sum(path.stat().st_size for path in (run / "fast" / "rollout").iterdir())
    assert f"{kept / 2**20:,.1f} MiB of the teacher's states" in line
    assert 64 * 4 * 1024 <= kept <= 64 * 6 * 1024 + 5000
    assert "it may be deleted" in line


def test_it_warns_of_nothing(run: Path) -> None:
    """On standard error are the bars of what is loaded and saved, and nothing else."""
    assert beside_bars((run / "said").read_text()) == []


def student(folder: Path) -> Any:
    """Loaded and called as README.md of a student's folder says, by diffusers alone."""
    text = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    before, found = os.getcwd(), {}
    try:
        os.chdir(folder)
        exec(code, found)
    finally:
        os.chdir(before)
        sys.path.remove("scheduler")
        sys.modules.pop("fixed_flow_scheduler", None)
    assert found["result"].images[0].size == (16, 16)
    return found["pipeline"]


def latents(of: Any, times: Any, scale: float) -> tuple[torch.Tensor, float]:
    """Of the held-out samples, and the evaluations for one."""
    prompts = [ANIMALS[-4:][i % 4] for i in range(6)]
    (call,) = prompt_calls(
        prompts, batch_size=6, seed=EVALUATION, guidance_scale=scale, height=16, width=16
    )
    of.set_progress_bar_config(disable=True)
    found = sample_pipeline(of, times, call)
    return found.latents, found.evaluations


@pytest.mark.parametrize("budget", [2, 3])
def test_the_page_loads_the_student_that_was_measured(run: Path, budget: int) -> None:
    """In a fresh pipeline: its evaluations and its distance to the teacher are those of the card,
    and less than what the guided pipeline has in as many evaluations."""
    card = json.loads((run / "fast" / str(budget) / "card.json").read_text())
    pipeline = student(run / "fast" / str(budget))
    assert type(pipeline.scheduler).__module__ == "fixed_flow_scheduler"
    schedule = Schedule.from_json((run / "fast" / str(budget) / "schedule.json").read_text())
    assert pipeline.scheduler.config.fixed_sigmas == list(schedule.sigmas)
    assert schedule.nfe == budget

    teacher = StableDiffusion3Pipeline.from_pretrained(run / "pipe")
    fine, _ = latents(teacher, uniform(8), 4.0)
    own, evaluations = latents(pipeline, schedule.timesteps, 1.0)
    assert evaluations == budget
    distance = float((own - fine).square().flatten(1).sum(dim=1).mean())
    results = card["results"]
    found = next(v for k, v in results.items() if k.startswith("student"))
    assert found["distance"] == pytest.approx(distance, rel=1e-3)
    assert found["nfe"] == budget
    (rival,) = [v for k, v in results.items() if k.startswith("guided, 1 ")]
    assert rival["nfe"] == 2.0
    assert found["distance"] < rival["distance"]


@pytest.mark.parametrize("kind", ["beside another LoRA", "all weights, for two steps back"])
def test_the_page_of_other_students(boss: Boss, copied: Path, kind: str) -> None:
    """One whose teacher has a LoRA, and one of all weights: what the page loads is as far from the
    teacher as the card says."""
    changes = {
        "beside another LoRA": ["--lora", "fast/3", "--steps", "fast/2/schedule.json"],
        "all weights, for two steps back": ["--full", "--solver", "ab2", "--steps", "uniform"],
    }[kind]
    arguments = [*OPTIONS, "--iterations", "4", "--budget", "2", *changes, "--out", "more"]
    if "--full" in changes:
        place = arguments.index("--rank")
        del arguments[place : place + 2]
    arguments[arguments.index("--trajectories") + 1] = "16"
    code, _, err = boss("straighten", *arguments)
    assert code == 0, err
    card = json.loads((copied / "more" / "2" / "card.json").read_text())
    pipeline = student(copied / "more" / "2")
    schedule = Schedule.from_json((copied / "more" / "2" / "schedule.json").read_text())
    teacher = StableDiffusion3Pipeline.from_pretrained(copied / "pipe")
    if "--lora" in changes:
        teacher.load_lora_weights(copied / "fast" / "3")
    fine, _ = latents(teacher, uniform(8), 4.0)
    pipeline.set_progress_bar_config(disable=True)
    own, _ = latents(pipeline, schedule.timesteps, 1.0)
    if "ab2" in changes:
        assert pipeline.scheduler.config.solver == "ab2"
        (call,) = prompt_calls(
            [ANIMALS[-4:][i % 4] for i in range(6)], batch_size=6, seed=EVALUATION,
            guidance_scale=1.0, height=16, width=16,
        )  # fmt: skip
        own = sample_pipeline(pipeline, schedule.timesteps, call, solver="ab2").latents
    distance = float((own - fine).square().flatten(1).sum(dim=1).mean())
    found = next(v for k, v in card["results"].items() if k.startswith("student"))
    assert found["distance"] == pytest.approx(distance, rel=1e-3)


def test_the_scheduler_keeps_its_steps(run: Path, tmp_path: Path) -> None:
    """Copied, pickled, saved within a pipeline and loaded again."""
    from boss_core.interop.fixed_flow_scheduler import FixedFlowScheduler

    loaded = FixedFlowScheduler.from_pretrained(run / "fast" / "3" / "scheduler")
    loaded.save_pretrained(tmp_path / "again")
    others = (
        copy.deepcopy(loaded),
        pickle.loads(pickle.dumps(loaded)),
        FixedFlowScheduler.from_pretrained(tmp_path / "again"),
    )
    schedule = Schedule.from_json((run / "fast" / "3" / "schedule.json").read_text())
    for scheduler in (loaded, *others):
        scheduler.set_timesteps(50)
        assert scheduler.sigmas.tolist() == pytest.approx(schedule.sigmas, abs=1e-6)


def test_the_card_says_what_it_came_from(run: Path) -> None:
    card = json.loads((run / "fast" / "2" / "card.json").read_text())
    assert card["prompts"]["sha256"] == sha256(run / "prompts.txt")
    assert card["prompts"]["training"] == 12
    assert card["prompts"]["held_out"] == 4
    assert card["baked_in"]["arguments"]["guidance_scale"] == 4.0
    assert card["baked_in"]["call_the_student_with"] == {"guidance_scale": 1.0}
    assert card["versions"]["diffusers"]
    assert card["files"][WEIGHTS] == sha256(run / "fast" / "2" / WEIGHTS)
    assert oct((run / "fast" / "2" / WEIGHTS).stat().st_mode & 0o777) == oct(
        (run / "fast" / "2" / "README.md").stat().st_mode & 0o777
    )
    assert not (run / "fast" / "training").exists()


def test_what_is_finished_is_left_alone(boss: Boss, copied: Path) -> None:
    before = {p: p.read_bytes() for p in (copied / "fast").rglob("*") if p.is_file()}
    arguments = [*OPTIONS, "--iterations", "60", "--budget", "2", "--budget", "3", "--out", "fast"]
    code, out, err = boss("straighten", *arguments)
    assert (code, err.count("error")) == (0, 0)
    assert "fast/2: finished already" in out
    assert "rollout" not in out
    code, _, err = boss("straighten", *arguments, "--seed", 1)
    assert code == 2
    assert "fast/2: holds a student of another run (seed differ" in err
    assert {p: p.read_bytes() for p in (copied / "fast").rglob("*") if p.is_file()} == before


def test_a_step_has_as_many_samples_where_each_is_a_call() -> None:
    training = Training(
        rank=4, trajectories=64, held_out=6, batch_size=8, accumulate=2, iterations=5,
        learning_rate=1e-3, checkpointing=False,
    )  # fmt: skip
    plain, image = PromptRow("a"), PromptRow("b", {"image": "b.png"})
    changed = replace(training, batch_size=1, accumulate=16)
    assert as_called(training, SampleCalls([plain], images="once")) == training
    assert as_called(training, SampleCalls([plain, image], images="alone")) == training
    assert as_called(training, SampleCalls([image], images="alone")) == changed
    assert as_called(training, SampleCalls([plain], images="single")) == changed


MISTAKES = {
    "no prompts": (["--prompts", "none.txt"], "none.txt: "),
    "no text": (["--prompts", "binary.txt"], "binary.txt: "),
    "empty": (["--prompts", "empty.txt"], "no prompts in it"),
    "no such pipeline": (["--pipeline", "nowhere"], "--pipeline: nowhere"),
    "size": (["--size", "17x16"], "--pipeline: StableDiffusion3Pipeline refuses this call"),
    "argument": (["--call", "num_frames=5"], "takes no num_frames"),
    "budget": (["--budget", "9"], "--budget: 9; 1..8"),
    "solver": (["--solver", "heun"], "--solver: 'heun'; euler or ab2 needed"),
    "file of steps": (["--steps", "none.json"], "none.json"),
    "lora": (["--lora", "other.safetensors"], "--lora: other.safetensors"),
    "no lora": (["--lora", "empty.txt"], "--lora: empty.txt"),
    "all weights beside a lora": (["--full", "--lora", "x"], "--lora: x with --full"),
    "few trajectories": (["--trajectories", "8"], "--trajectories: 8; at least one step's, 16"),
    "out": (["--out", "prompts.txt"], "--out: prompts.txt is a file"),
    "checkpointing": (["--gradient-checkpointing", "--device", "cuda:7"], "--device: cuda:7"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mistakes")
    prepare(path)
    (path / "binary.txt").write_bytes(bytes(range(256)))
    (path / "empty.txt").write_text("\n")
    from safetensors.torch import save_file

    of_another = {
        "transformer.blocks.0.attn1.to_q.lora_A.weight": torch.zeros(2, 5),
        "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.zeros(5, 2),
    }
    save_file(of_another, path / "other.safetensors")
    return path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_line(
    boss: Boss, folder: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.chdir(folder)
    changes, expected = MISTAKES[mistake]
    arguments = [*OPTIONS, "--budget", "2", "--out", "fast", *changes]
    for name in set(changes) & {"--prompts", "--pipeline", "--size", "--out", "--trajectories"}:
        place = arguments.index(name)
        del arguments[place : place + 2]  # given once
    if "--full" in changes:
        place = arguments.index("--rank")
        del arguments[place : place + 2]
    if "--budget" in changes:
        arguments.remove("2")
        arguments.remove("--budget")
    code, _, err = boss("straighten", *arguments)
    (line,) = [each for each in err.splitlines() if each.startswith("error: ")]
    assert code == 2
    assert expected in line
    assert "Traceback" not in err
    assert not (folder / "fast").exists()


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_gradients_that_do_not_fit_are_known_before_the_rollout(
    boss: Boss, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.chdir(folder)
    backward = torch.Tensor.backward

    def fail(of: torch.Tensor, *args: Any, **others: Any) -> None:
        backward(of, *args, **others)
        raise error

    monkeypatch.setattr(torch.Tensor, "backward", fail)
    code, _, err = boss("straighten", *OPTIONS, "--budget", "2", "--out", "fast")
    (line,) = [each for each in err.splitlines() if each.startswith("error: ")]
    assert code == 2
    assert line.startswith("error: --batch-size: 16 samples do not fit into the memory of cpu")
    assert "--gradient-checkpointing" in line
    assert not (folder / "fast").exists()


@pytest.mark.long
@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(run: Path, tmp_path: Path) -> None:
    """To the same weights, without doing again what was done."""
    prepare(tmp_path)
    command = [
        sys.executable, "-m", "flows.cli.app", "straighten", *OPTIONS, "--iterations", "60",
        "--budget", "2", "--budget", "3", "--out", "fast",
    ]  # fmt: skip
    draw = random.Random(3)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(3):
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + draw.uniform(8.0, 16.0)
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr[-2000:]
    for budget in ("2", "3"):
        assert sha256(tmp_path / "fast" / budget / WEIGHTS) == sha256(
            run / "fast" / budget / WEIGHTS
        )
    assert sorted(p.name for p in (tmp_path / "fast").iterdir()) == ["2", "3", "rollout", "search"]


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Two calls a step on one process, or one on each of two."""
    prepare(tmp_path)
    arguments = [
        *OPTIONS, "--iterations", "8", "--budget", "2", "--accumulate", "2", "--steps", "uniform",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    commands = {"one": [sys.executable, "-m"], "two": [*launch, "-m"]}
    shown = {}
    for out, command in commands.items():
        done = subprocess.run(
            [*command, "flows.cli.app", "straighten", *arguments, "--out", out],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        shown[out] = done.stdout
    one, two = (load_file(tmp_path / out / "2" / WEIGHTS) for out in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert (weight - two[name]).norm() <= 1e-4 * weight.norm().clamp_min(1e-3), name
    assert shown["two"].count("2 network evaluations a sample") == 1
    assert len(list((tmp_path / "two" / "rollout").glob("*.safetensors"))) == 4


@pytest.mark.long
@pytest.mark.slow
def test_compiled_it_makes_the_same_student(
    boss: Boss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first half of what the default compiler does, as this one would take minutes."""
    prepare(tmp_path)
    monkeypatch.setattr(
        "flows.straighten.teacher.compile_blocks", partial(compile_blocks, backend="aot_eager")
    )
    arguments = [*OPTIONS, "--iterations", "4", "--budget", "2", "--steps", "uniform"]
    changes = {"plain": [], "compiled": ["--compile", "--gradient-checkpointing"]}
    for out, more in changes.items():
        code, _, err = boss("straighten", *arguments, *more, "--out", out)
        assert code == 0, err
    plain, compiled = (load_file(tmp_path / out / "2" / WEIGHTS) for out in changes)
    assert plain.keys() == compiled.keys()
    for name, weight in plain.items():
        assert (weight - compiled[name]).norm() <= 1e-4 * weight.norm().clamp_min(1e-3), name
