"""The custom node, run through ComfyUI's sampler interface as its sources have it: samplers are
called as ``sampler(model, x, sigmas, extra_args, callback, disable)`` with a model that returns
the denoised state, and end states are divided by 1 - sigma."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from boss_core.errors import InputError
from boss_core.interop.export import to_comfyui_node
from boss_core.ode.noise import sample_noise
from boss_core.ode.schedule import Schedule
from boss_core.ode.solvers import solver_of
from tests.helpers.costs import smooth
from tests.helpers.solvers import some_weights

TIMES = (0.0, 0.12, 0.33, 0.6, 0.85, 1.0)
SCHEDULES = {
    "euler": Schedule(timesteps=TIMES),
    "ab2": Schedule(timesteps=TIMES, solver="ab2"),
    "multistep": Schedule(timesteps=TIMES, solver="multistep", weights=some_weights(5)),
}
NOISE = sample_noise(range(4), (6,), seed=0).double()


class KSampler:
    """As comfy.samplers.KSAMPLER holds a function."""

    def __init__(self, sampler_function: Any) -> None:
        self.sampler_function = sampler_function


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> None:
    samplers = types.ModuleType("comfy.samplers")
    samplers.KSAMPLER = KSampler
    package = types.ModuleType("comfy")
    package.samplers = samplers
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)


def node(schedule: Schedule, folder: Path) -> Any:
    """What ComfyUI finds in a file of custom_nodes: its mapping, and an instance of the node."""
    file = folder / "boss.py"
    file.write_text(to_comfyui_node(schedule))
    names: dict[str, Any] = {"__name__": "boss"}
    exec(compile(file.read_text(), str(file), "exec"), names)
    (kind,) = names["NODE_CLASS_MAPPINGS"].values()
    assert kind.INPUT_TYPES() == {"required": {}}
    assert "boss_core" not in file.read_text()
    made = kind()
    return getattr(made, kind.FUNCTION)()


def denoiser(x: torch.Tensor, sigma: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """x - sigma (noise - data): the state without its noise, as the velocity has it."""
    velocity = scale * smooth(x, 1.0 - sigma)
    return x + sigma.view(-1, 1) * velocity


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SCHEDULES)
def test_it_samples_as_the_library_does(
    name: str, dtype: torch.dtype, comfy: None, tmp_path: Path
) -> None:
    sampler, sigmas = node(SCHEDULES[name], tmp_path)
    assert sigmas.dtype == torch.float32
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    seen: list[dict[str, Any]] = []
    x = NOISE.to(dtype)
    ends = sampler.sampler_function(
        denoiser, x, sigmas, extra_args={"scale": 1.0}, callback=seen.append, disable=True
    )
    wanted = solver_of(SCHEDULES[name])(smooth, x, TIMES)
    torch.testing.assert_close(ends / (1 - sigmas[-1]), wanted, rtol=0, atol=1e-6)
    assert [step["i"] for step in seen] == [0, 1, 2, 3, 4]
    assert [float(step["sigma"]) for step in seen] == pytest.approx([1, 0.88, 0.67, 0.4, 0.15])
    assert torch.equal(x, NOISE.to(dtype))
    assert set(seen[0]) == {"x", "i", "sigma", "sigma_hat", "denoised"}


def test_sigmas_of_others_are_refused(comfy: None, tmp_path: Path) -> None:
    sampler, sigmas = node(SCHEDULES["multistep"], tmp_path)
    for wrong in (sigmas[1:], torch.linspace(1, 0, 6)):  # part of them, as with denoise below 1
        with pytest.raises(ValueError, match="those of the output SIGMAS of the BOSS sampler"):
            sampler.sampler_function(denoiser, NOISE, wrong, disable=True)


def test_heun_is_refused() -> None:
    with pytest.raises(InputError, match="for solver heun; one for euler or ab2 or multistep"):
        to_comfyui_node(Schedule(timesteps=TIMES, solver="heun"))
