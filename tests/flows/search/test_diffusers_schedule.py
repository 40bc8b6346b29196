"""``boss schedule --pipeline`` and ``boss export`` on a diffusers pipeline in a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from boss_core.interop.diffusers_pipelines import (
    estimate_pipeline_cost,
    prompt_calls,
    sample_latents,
)
from boss_core.ode.noise import COSTS
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import uniform
from flows.search.images import load_images
from flows.search.pipeline_call import PromptRow, SampleCalls, call_arguments, conditions
from tests.helpers import tiny_pipelines
from tests.helpers.checkout import ROOT
from tests.helpers.costs import cost_matrix
from tests.helpers.standard_error import beside_bars

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
    calls = prompt_calls(prompts, batch_size=5, seed=COSTS, guidance_scale=3.0, height=16, width=16)
    expected = estimate_pipeline_cost(pipeline, uniform(8), calls).matrix
    far = np.triu_indices(9, k=2)
    np.testing.assert_allclose(
        np.load("schedules/cost.npz")["cost"][far], expected.cost[far], rtol=1e-3
    )

    # A search for other budgets measures nothing again, and counts as before.
    code, out, _ = boss("schedule", *OPTIONS, "--samples", 5, "--budget", 4)
    assert code == 0
    assert "network evaluations in a step" not in out
    assert "\u2502 4 (8) \u2502" in " ".join(out.split())
    schedule = Schedule.from_json(Path("schedules/4.json").read_text())
    assert (schedule.steps, schedule.nfe, schedule.evaluations) == (4, 8, 8.0)
    assert '"nfe": 8' in boss("export", "schedules/4.json", "--to", "json")[1]
    assert "rounding" not in out  # float32

    # Costs of a version that did not look at the networks are not gone on from.
    Path("schedules/pipeline.json").rename("pipeline.json")
    code, _, err = boss("schedule", *OPTIONS, "--budget", 2)
    assert code == 2
    assert "cost.npz: costs of a pipeline without pipeline.json beside them" in err
    Path("pipeline.json").rename("schedules/pipeline.json")

    # Other conditions are another search.
    code, _, err = boss("schedule", *OPTIONS, "--guidance", 5, "--budget", 2)
    assert code == 2
    assert "conditions is" in err


@pytest.mark.slow
def test_a_search_warns_of_nothing(boss, pipe: Path) -> None:
    """In a process of its own: on standard error are the bars of loading, and nothing else; and no
    warning of what a later version will not take is hidden."""
    strict = [f"-Werror::{kind}Warning" for kind in ("Deprecation", "PendingDeprecation", "Future")]
    command = [sys.executable, *strict, "-m", "flows.cli.app", "schedule", *map(str, OPTIONS)]
    shown = subprocess.run(
        [*command, "--budget", "2", "--samples", "3"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert beside_bars(shown.stderr) == []


def test_options_say_what_is_used_and_how_sure_it_is(boss, pipe: Path) -> None:
    given = ["--call", "negative_prompt=dull", "--call", "clip_skip=0"]
    code, out, _ = boss(
        "schedule", *OPTIONS, "--dtype", "bfloat16", "--samples", 3, "--budget", 2, *given
    )
    assert code == 0
    assert "2 prompts for 3 trajectories: each is used for up to 2 of them" in out
    line = next(line for line in out.splitlines() if line.startswith("rounding: "))
    assert " of the predicted error at K = 2 is bfloat16's; without it, these steps are " in line

    pipeline = StableDiffusion3Pipeline.from_pretrained(pipe, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    calls = prompt_calls(
        [PROMPTS[i % 2] for i in range(3)], batch_size=2, seed=COSTS, guidance_scale=3.0,
        height=16, width=16, negative_prompt="dull",
    )  # fmt: skip
    expected = estimate_pipeline_cost(pipeline, uniform(8), calls).matrix
    np.testing.assert_allclose(np.load("schedules/cost.npz")["cost"], expected.cost, rtol=1e-6)

    # Another negative prompt is another search.
    other = ["--dtype", "bfloat16", "--call", "negative_prompt=ugly"]
    code, _, err = boss("schedule", *OPTIONS, "--budget", 2, *other)
    assert (code, "conditions is" in err) == (2, True)


def test_a_search_ends_by_itself_and_goes_on_where_it_was(boss, pipe: Path) -> None:
    options = [*OPTIONS, "--batch-size", 8]
    code, out, _ = boss("schedule", *options, "--budget", 2, "--samples", 3)
    assert (code, cost_matrix(Path("schedules/cost.npz")).samples) == (0, 3)
    code, out, _ = boss("schedule", *options, "--budget", 2)
    assert code == 0
    assert "3 trajectories are in cost.npz already" in out
    assert "24 trajectories of 8 steps" in out  # 20 at least, in whole batches
    line = next(line for line in out.splitlines() if "resamples these steps" in line)
    count = int(line.split()[1])
    assert 27 <= count <= 107
    assert (count - 3) % 8 == 0
    assert line.endswith(": enough") == (count < 100)
    assert cost_matrix(Path("schedules/cost.npz")).samples == count
    # Asked again it says the same, and measures nothing.
    code, out, _ = boss("schedule", *options, "--budget", 2, "--samples", "auto")
    assert (code, line in out, "sample steps in" in out) == (0, True, False)


def test_rows_of_json_have_arguments_of_their_own(boss, pipe: Path) -> None:
    lines = [
        {"prompt": "cat", "negative_prompt": "dull"},
        {"prompt": "dog", "negative_prompt": "grey"},
        {"prompt": "cow", "guidance_scale": 1.0},
    ]
    Path("prompts.txt").write_text("\n".join(map(json.dumps, lines)))
    code, _, err = boss("schedule", *OPTIONS, "--samples", 5, "--budget", 2)
    assert code == 0, err
    pipeline = StableDiffusion3Pipeline.from_pretrained(pipe)
    pipeline.set_progress_bar_config(disable=True)
    calls: list[dict] = []
    for start in (0, 3):
        shared = {"height": 16, "width": 16, "seed": COSTS}
        calls += prompt_calls(
            ["cat", "dog"], batch_size=2, first=start, guidance_scale=3.0, **shared
        )
        calls[-1]["negative_prompt"] = ["dull", "grey"]
        if start == 0:
            calls += prompt_calls(["cow"], batch_size=1, first=2, guidance_scale=1.0, **shared)
    expected = estimate_pipeline_cost(pipeline, uniform(8), calls)
    far = np.triu_indices(9, k=2)
    found = cost_matrix(Path("schedules/cost.npz")).cost
    np.testing.assert_allclose(found[far], expected.matrix.cost[far], rtol=1e-3)
    # Four samples of two evaluations a step, and one of one.
    schedule = Schedule.from_json(Path("schedules/2.json").read_text())
    assert schedule.evaluations == pytest.approx(2 * 9 / 5)


def test_rows_of_other_sizes_have_costs_but_no_comparison(boss, pipe: Path) -> None:
    lines = [{"prompt": "cat"}, {"prompt": "cat", "height": 24}]
    Path("prompts.txt").write_text("\n".join(map(json.dumps, lines)))
    options = [*OPTIONS, "--samples", 2, "--budget", 2]
    assert boss("schedule", *options)[0] == 0
    code, _, err = boss("schedule", *options, "--objective", "auto", "--noises", 20, "--replace")
    assert code == 2
    assert "latents of several shapes ((4, 8, 8), (4, 12, 8)), which it cannot compare" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "num_frames": 9}', "line 2: StableDiffusion3Pipeline takes no num_"),
        ('{"prompt": "a", "generator": 1}', "line 2: generator is set by the command"),
        ('{"prompt": "a", "image": "no.png"}', "line 2: image=no.png: no such file"),
        ('{"prompt": "a", "guidance_scale": 1, "negative_prompt": "b"}', "line 2: negative_prom"),
        ('{"prompt": "a", "height": 17}', "line 2: StableDiffusion3Pipeline refuses this call"),
        ("[]", "line 2: '[]'; a JSON object"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_a_line(boss, pipe: Path, line: str, message: str) -> None:
    Path("prompts.txt").write_text(f'{{"prompt": "cat"}}\n{line}\n')
    code, _, err = boss("schedule", *OPTIONS, "--budget", 2)
    assert code == 2, err
    (said,) = [text for text in err.splitlines() if text.strip() and "it/s" not in text]
    assert said.startswith("error: ")
    assert message in said
    assert not Path("schedules").exists()


def test_values_of_call_are_json_or_text() -> None:
    given = [
        "a=4",
        "b=0.5",
        "c=null",
        "d=[1, 2]",
        "e=a=b",
        "negative_prompt=4",
        "f=true",
        "g=False",
        "h=None",
        "i=.5",
        "j=(1",
        "k={1}",
    ]
    assert call_arguments(3.0, (16, 8), given) == {
        "guidance_scale": 3.0, "height": 16, "width": 8, "a": 4, "b": 0.5, "c": None,
        "d": [1, 2], "e": "a=b", "negative_prompt": "4", "f": True,
        "g": False, "h": None, "i": 0.5, "j": "(1", "k": "{1}",
    }  # fmt: skip


def test_an_image_is_read_and_its_bytes_are_a_condition(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "a.png"
    hashes = set()
    for value in (0, 255):
        Image.new("L", (4, 4), value).save(path)
        for calls in (
            SampleCalls([PromptRow("a")], {"image": str(path)}),
            SampleCalls([PromptRow("a", {"image": str(path)})]),
        ):
            hashes.add(conditions(calls, "float32"))
    assert len(hashes) == 4
    (image,) = load_images({"image": str(path)}).values()
    assert (image.size, image.mode) == ((4, 4), "RGB")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "17x16"], "StableDiffusion3Pipeline refuses this call: ValueError: `height`"),
        (["--call", "true_cfg_scale=4"], "takes no true_cfg_scale; it takes guidance_scale"),
        (["--call", "num_frames=9"], "--call: StableDiffusion3Pipeline takes no num_frames"),
        (["--call", "height=32"], "--call: height is given twice"),
        (["--call", "sigmas=[1]"], "--call: sigmas is set by the command"),
        (["--call", "4"], "--call: '4'; NAME=VALUE, as true_cfg_scale=4, needed"),
        (["--call", "image=none.png"], "--call: image=none.png: no such file; an image needed"),
        # Without guidance the negative prompt is not read.
        (
            ["--guidance", 1, "--call", "negative_prompt=dull"],
            "--call: negative_prompt='dull' changes nothing in the latents of this"
            " StableDiffusion3Pipeline; none, or guidance_scale above 1 with it, needed",
        ),
        (
            ["--call", "skip_guidance_layers=[0]", "--call", "skip_layer_guidance_stop=0.4"],
            "guidance is on for a share of the steps",
        ),
    ],
)
def test_what_the_pipeline_refuses_or_ignores_is_a_line(
    boss, pipe: Path, options, message: str
) -> None:
    code, _, err = boss("schedule", *OPTIONS, "--samples", 2, "--budget", 2, *options)
    assert code == 2, err
    # The bars are diffusers', of loading.
    (line,) = [line for line in err.splitlines() if line.strip() and "it/s" not in line]
    assert line.startswith("error: ")
    assert message in line
    assert not Path("schedules").exists()


def test_a_pipeline_that_this_diffusers_lacks_or_that_needs_an_image_is_a_line(
    boss, pipe: Path
) -> None:
    options = [*OPTIONS, "--samples", 2, "--budget", 2]
    index = pipe / "model_index.json"
    text = index.read_text()
    index.write_text(text.replace("StableDiffusion3Pipeline", "TomorrowsPipeline"))
    code, _, err = boss("schedule", *options)
    assert code == 2
    assert "pipe: module diffusers has no attribute TomorrowsPipeline; one of the installed" in err
    index.write_text(text.replace("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"))
    code, _, err = boss("schedule", *options)
    assert code == 2
    assert "StableDiffusion3Img2ImgPipeline refuses this call: " in err
    assert "Traceback" not in err


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


def test_fitted_weights_of_a_pipeline(boss, pipe: Path) -> None:
    options = ["--samples", 12, "--budget", 3, "--budget", 1, "--solver", "multistep"]
    code, out, _ = boss("schedule", *OPTIONS, *options, "--batch-size", 6)
    assert code == 0
    assert (
        "weights fitted to 12 samples: their fine trajectories again, and 5 steps for each" in out
    )
    assert "schedule: weights: 60 sample steps" in out
    found = Schedule.from_json(Path("schedules/3.json").read_text())
    assert [len(of) for of in found.weights] == [1, 2, 3]
    assert Schedule.from_json(Path("schedules/1.json").read_text()).weights == ((1.0,),)

    # With the snippet the pipeline takes these steps with these weights, nearer to the fine ones.
    pipeline = StableDiffusion3Pipeline.from_pretrained(pipe)
    pipeline.set_progress_bar_config(disable=True)
    shared = {"guidance_scale": 3.0, "height": 16, "width": 16}
    calls = lambda: prompt_calls(PROMPTS, batch_size=2, seed=5, **shared)  # noqa: E731
    fine, plain, fitted = (
        sample_latents(pipeline, times, calls(), **how)
        for times, how in (
            (uniform(8), {}),
            (found.timesteps, {}),
            (found.timesteps, {"solver": "multistep", "weights": found.weights}),
        )
    )
    assert (fitted - fine).square().sum() < (plain - fine).square().sum()
    code, snippet, _ = boss("export", "schedules/3.json", "--to", "diffusers-fixed")
    assert code == 0
    exec(compile(snippet, "snippet", "exec"), {"pipeline": pipeline})
    (call,) = calls()
    taken = pipeline(**call, num_inference_steps=3, output_type="latent").images
    torch.testing.assert_close(taken, fitted, rtol=0, atol=1e-4)


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
        (["schedule", *OPTIONS, "--samples", "few", "--budget", 2], "--samples: 'few'; a number"),
        (["schedule", "--velocity", "m:f", "--samples", "auto", "--budget", 2], "only goes with"),
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
