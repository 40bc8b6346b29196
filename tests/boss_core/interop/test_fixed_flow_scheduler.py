"""A scheduler that keeps its steps: copied, pickled, saved, loaded, alone and in a pipeline."""

import copy
import importlib
import logging
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from boss_core.interop.diffusers_schedulers import fixed_scheduler
from boss_core.interop.export import to_diffusers_fixed
from boss_core.interop.fixed_flow_scheduler import FixedFlowScheduler
from boss_core.ode.schedule import Schedule
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.linear import Linear
from tests.helpers.solvers import solvers, some_weights

TIMES = (0.0, 0.1, 0.3, 0.6, 1.0)


def saved(scheduler: Any, folder: Path) -> Any:
    scheduler.save_pretrained(folder)
    return FixedFlowScheduler.from_pretrained(folder)


COPIES: dict[str, Callable[[Any, Path], Any]] = {
    "copy": lambda scheduler, _: copy.copy(scheduler),
    "deepcopy": lambda scheduler, _: copy.deepcopy(scheduler),
    "pickle": lambda scheduler, _: pickle.loads(pickle.dumps(scheduler)),
    "saved": saved,
    "from_config": lambda scheduler, _: FixedFlowScheduler.from_config(scheduler.config),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("solver", ["euler", "ab2", "multistep"])
def test_a_copy_takes_the_same_steps(solver: str, inverted: bool, how: str, tmp_path: Path) -> None:
    own = FlowMatchEulerDiscreteScheduler(shift=3.0, invert_sigmas=inverted)
    weights = some_weights(4) if solver == "multistep" else None
    scheduler = COPIES[how](fixed_scheduler(own, TIMES, solver, weights), tmp_path)
    scheduler.set_timesteps(50, sigmas=[1.0, 0.5])
    assert len(scheduler.timesteps) == 4
    assert scheduler.config.shift == 3.0  # for pipelines that read it
    velocity = Linear()
    x = start = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for level in scheduler.timesteps:
        t = level / 1000 if inverted else 1 - level / 1000
        v = velocity(x, t.expand(3))
        x = scheduler.step(v if inverted else -v, level, x).prev_sample
    wanted = solvers(4)[solver](velocity, start, TIMES)
    torch.testing.assert_close(x, wanted, rtol=0, atol=1e-6)


def test_a_copy_in_the_middle_of_a_call_goes_on_from_there() -> None:
    scheduler = fixed_scheduler(FlowMatchEulerDiscreteScheduler(), TIMES, "ab2")
    scheduler.set_timesteps(4)
    x = torch.ones(1, 2)
    scheduler.step(-x, scheduler.timesteps[0], x)
    twin = pickle.loads(pickle.dumps(scheduler))
    ends = [s.step(-2 * x, s.timesteps[1], x).prev_sample for s in (scheduler, twin)]
    # A step of 0.2 after one of 0.1 extrapolates by its whole change: 2 + (2 - 1) along 0.2.
    torch.testing.assert_close(ends[0], x + 0.2 * 3 * x)
    assert torch.equal(*ends)


def sample(pipeline: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    call = {"prompt": ["a", "b"], "height": 16, "width": 16, "num_inference_steps": 4}
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    return pipeline(**call, generator=generators, output_type="latent").images


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "sd3"
    tiny.sd3_with_text(folder)
    return folder


@pytest.mark.parametrize("solver", ["euler", "ab2", "multistep"])
def test_a_saved_pipeline_has_its_steps(pipeline_folder: Path, tmp_path: Path, solver: str) -> None:
    pipeline = DiffusionPipeline.from_pretrained(pipeline_folder)
    plain = sample(pipeline)
    weights = some_weights(4) if solver == "multistep" else None
    pipeline.scheduler = fixed_scheduler(pipeline.scheduler, TIMES, solver, weights)
    wanted = sample(pipeline)
    assert not torch.allclose(wanted, plain, atol=1e-3)
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.scheduler, FixedFlowScheduler)
    assert torch.equal(sample(loaded), wanted)


def test_the_snippet_as_a_module_saves_and_loads_without_the_library(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule(timesteps=TIMES, indices=(0, 10, 30, 60, 100), objective="l2_squared")
    text = to_diffusers_fixed(schedule)
    assert "boss_core" not in text
    source, end = text.split("fixed_sigmas = [")
    (tmp_path / "fixed_flow_scheduler.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("fixed_flow_scheduler")
    monkeypatch.delitem(sys.modules, "boss_core.interop.fixed_flow_scheduler")
    pipeline = DiffusionPipeline.from_pretrained(pipeline_folder)
    names = {"pipeline": pipeline, "FixedFlowScheduler": module.FixedFlowScheduler}
    exec(compile(f"fixed_sigmas = [{end}", "snippet", "exec"), names)
    wanted = sample(pipeline)
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert type(loaded.scheduler) is module.FixedFlowScheduler
    assert torch.equal(sample(loaded), wanted)
    monkeypatch.delitem(sys.modules, "fixed_flow_scheduler")


def test_another_class_that_reads_its_folder_says_what_it_drops(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fixed_scheduler(FlowMatchEulerDiscreteScheduler(), TIMES).save_pretrained(tmp_path)
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    assert "'fixed_sigmas': [1.0, 0.9, 0.7, 0.4, 0.0]" in caplog.text
    assert "will be ignored" in caplog.text


def test_its_own_folder_is_read_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True, shift=3.0)
    fixed_scheduler(own, TIMES).save_pretrained(tmp_path)
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        loaded = FixedFlowScheduler.from_pretrained(tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.text
    assert (loaded.config.shift, loaded.config.stochastic_sampling) == (3.0, False)
    with pytest.raises(ValueError, match="stochastic_sampling: True; False needed"):
        FixedFlowScheduler(stochastic_sampling=True)


def test_weights_that_do_not_fit_are_refused() -> None:
    own = FlowMatchEulerDiscreteScheduler()
    for solver, weights in (("multistep", None), ("multistep", [[1.0]]), ("ab2", [[1.0]] * 4)):
        with pytest.raises(ValueError, match="weights: "):
            fixed_scheduler(own, TIMES, solver, weights)
        with pytest.raises(ValueError, match=r"weights: of \d steps for 4 steps of"):
            FixedFlowScheduler([1 - t for t in TIMES], solver, weights)
    scheduler = fixed_scheduler(own, TIMES, "multistep", some_weights(4))
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(2)
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match="begins at step 2, whose weights are for 3 velocities"):
        scheduler.step(x, scheduler.timesteps[2], x)


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_times_in_whole_numbers_are_the_nearest(solver: str) -> None:
    """SkyReels rounds the times of its frames, which diffusers' own scheduler refuses."""
    scheduler = fixed_scheduler(FlowMatchEulerDiscreteScheduler(), (0.0, 0.1234, 1.0), solver)
    scheduler.set_timesteps(2)
    x = torch.ones(1)
    for level in scheduler.timesteps.long():
        x = scheduler.step(x, level, x).prev_sample
    second = torch.tensor(1.0 - 0.1234)
    before, now = torch.tensor(1.0), second
    ratio = 0.8766 / 0.1234 / 2.0
    used = now if solver == "euler" else (1.0 + ratio) * now - ratio * before
    torch.testing.assert_close(x[0], second - 0.8766 * used, rtol=0, atol=1e-6)
