"""``boss schedule --pipeline`` and ``boss export`` on a diffusers pipeline in a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from boss_core.pipelines import (
    estimate_pipeline_cost,
    prompt_calls,
    sample_latents,
)
from boss_core.schedules import Schedule
from boss_core.timesteps import uniform
from tests import tiny_pipelines

PROMPTS = ["cat", "dogs"]
OPTIONS = [
    "--pipeline", "pipe", "--prompts", "prompts.txt", "--guidance", 3, "--size", "16x16",
    "--dtype", "float32", "--grid", 8, "--batch-size", 2,
]  # fmt: skip


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    tiny_pipelines.sd3_with_text(tmp_path / "pipe")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    return tmp_path / "pipe"


def test_costs_are_those_of_the_library_and_the_search_goes_on(boss, pipe: Path) -> None:
    code, out, _ = boss("schedule", *OPTIONS, "--samples", 2, "--budget", 2)
    assert code == 0
    assert "2 network evaluations in a step" in out  # guidance
    assert f"holding {8 * 2 * 4 * 8 * 8 * 4 / 2**20:.1f} MiB" in out
    code, out, _ = boss("schedule", *OPTIONS, "--samples", 5, "--budget", 3, "--budget", 2)
    assert code == 0
    assert "2 trajectories are in cost.npz already" in out
    assert "3 trajectories of 8 steps: 24 evaluations" in out

    pipeline = StableDiffusion3Pipeline.from_pretrained(pipe)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [PROMPTS[i % 2] for i in range(5)]
    calls = prompt_calls(prompts, batch_size=5, guidance_scale=3.0, height=16, width=16)
    expected = estimate_pipeline_cost(pipeline, uniform(8), calls).matrix
    far = np.triu_indices(9, k=2)
    np.testing.assert_allclose(
        np.load("schedules/cost.npz")["cost"][far], expected.cost[far], rtol=1e-3
    )

    # Other conditions are another search.
    code, _, err = boss("schedule", *OPTIONS, "--guidance", 5, "--budget", 2)
    assert code == 2
    assert "conditions is" in err


def test_auto_compares_samples_of_the_pipeline(boss, pipe: Path) -> None:
    options = ["--samples", 4, "--budget", 2, "--noises", 20, "--batch-size", 20]
    code, out, _ = boss("schedule", *OPTIONS, *options, "--solver", "ab2", "--objective", "auto")
    assert code == 0
    assert "schedule: 40 trajectories of 8 steps to compare with" in out
    assert "schedule: K = 2, ab2: " in out
    found = Schedule.from_json(Path("schedules/2.json").read_text())
    assert found.solver == "ab2"

    # What is compared does not depend on the batch, and leaves the pipeline as it was.
    pipeline = StableDiffusion3Pipeline.from_pretrained(pipe)
    pipeline.set_progress_bar_config(disable=True)
    shared = {"guidance_scale": 3.0, "height": 16, "width": 16}
    prompts = [PROMPTS[i % 2] for i in range(5)]
    own = pipeline.scheduler
    batches = [
        sample_latents(
            pipeline, found.timesteps, prompt_calls(prompts, batch_size=n, **shared), solver="ab2"
        )
        for n in (5, 2)
    ]
    torch.testing.assert_close(*batches, rtol=1e-4, atol=1e-4)
    assert pipeline.scheduler is own


def test_an_exported_schedule_is_what_the_pipeline_walks(boss, pipe: Path) -> None:
    boss("schedule", *OPTIONS, "--samples", 2, "--budget", 3)
    code, snippet, err = boss(
        "export", "schedules/3.json", "--to", "diffusers", "--scheduler", "pipe/scheduler"
    )
    assert code == 0
    assert "changes these steps" in err
    assert "shift=3.0: sigma" in err
    assert "pass sigmas=[1.0, " in err
    pipeline = StableDiffusion3Pipeline.from_pretrained(pipe)
    pipeline.set_progress_bar_config(disable=True)
    names = {"pipeline": pipeline}
    exec(snippet, names)
    pipeline("cat", sigmas=names["sigmas"], height=16, width=16, output_type="latent")
    schedule = Schedule.from_json(Path("schedules/3.json").read_text())
    torch.testing.assert_close(
        pipeline.scheduler.sigmas, torch.tensor(schedule.sigmas), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["schedule", "--pipeline", "pipe", "--budget", 2], "--prompts: missing"),
        (["schedule", *OPTIONS[:2], "--prompts", "none.txt", "--budget", 2], "none.txt"),
        (["schedule", *OPTIONS[:2], "--prompts", "empty.txt", "--budget", 2], "no prompts in it"),
        (["schedule", "--pipeline", "empty", *OPTIONS[2:], "--budget", 2], "--pipeline: empty: "),
        (["schedule", *OPTIONS, "--dtype", "int8", "--budget", 2], "--dtype: 'int8'; float32"),
        (["schedule", *OPTIONS, "--size", "16", "--budget", 2], "joined by x, as 512x512"),
        (["schedule", *OPTIONS, "--checkpoint", "pipe", "--budget", 2], "one of them needed"),
        (["schedule", *OPTIONS, "--objective", "refine", "--budget", 2], "--objective: refine; "),
        (["schedule", *OPTIONS, "--reference", "rk45", "--budget", 2], "--reference: rk45; with"),
        (["schedule", *OPTIONS, "--features", "x", "--budget", 2], "--features: x; with"),
        (["export", "none.json", "--to", "json"], "none.json: no such file"),
        (["export", "s.json", "--to", "onnx"], "--to: 'onnx'; diffusers, "),
        (["export", "s.json", "--to", "json", "--scheduler", "empty"], "of a scheduler ("),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(boss, tmp_path: Path, arguments, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "prompts.txt").write_text("a\n")
    steps = Schedule(timesteps=(0.0, 0.4, 1.0), indices=(0, 2, 5), objective="l2_squared")
    (tmp_path / "s.json").write_text(steps.to_json())
    code, _, err = boss(*arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
