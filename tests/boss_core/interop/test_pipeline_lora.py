"""Adapters of pipelines: what trains, in which dtype, and how it is written and read."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import sample_generators, sample_latents
from boss_core.interop.pipeline_lora import (
    WEIGHTS,
    TrainedWeights,
    add_lora,
    all_weights,
    check_adaptable,
    load_lora,
    remove_lora,
    save_lora,
)
from boss_core.ode.timesteps import uniform
from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.families import wan_two

ROWS = range(3)


def sd3_latents(pipeline: Any) -> torch.Tensor:
    call = tiny.sd3_prompts(ROWS, 1.0) | {"generator": sample_generators(ROWS, 3)}
    call = {k: v.to(pipeline.dtype) if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    return sample_latents(pipeline, uniform(2), [call])


def moved(weights: TrainedWeights) -> None:
    """As after a training: no weight is 0."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in weights.weights:
            weight.add_(0.3 * torch.randn_like(weight))
    weights.push()


def test_it_starts_as_no_change_and_can_be_taken_away() -> None:
    pipeline = tiny.sd3()
    before = sd3_latents(pipeline)
    weights = add_lora(pipeline, 2, seed=0)
    assert torch.equal(sd3_latents(pipeline), before)
    trained = {n for n, p in pipeline.transformer.named_parameters() if p.requires_grad}
    assert {f"transformer.{name}" for name in trained} == set(weights.there)
    moved(weights)
    assert not torch.allclose(sd3_latents(pipeline), before)
    remove_lora(pipeline)
    assert torch.equal(sd3_latents(pipeline), before)
    assert not any(p.requires_grad for p in pipeline.transformer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_that_diffusers_loads(tmp_path: Path, dtype: torch.dtype) -> None:
    """Into a fresh pipeline, by its own function: the same latents."""
    pipeline = tiny.sd3().to(dtype=dtype)
    moved(add_lora(pipeline, 2, seed=0))
    files = save_lora(pipeline, tmp_path)
    assert files == {"transformer": tmp_path / WEIGHTS}
    keys = load_file(tmp_path / WEIGHTS)
    assert all(k.startswith("transformer.") and "boss" not in k for k in keys)
    assert {t.dtype for t in keys.values()} == {dtype}
    fresh = tiny.sd3().to(dtype=dtype)
    fresh.load_lora_weights(tmp_path)
    assert (sd3_latents(fresh) - sd3_latents(pipeline)).abs().max() < 1e-6


def test_two_networks_have_two_files(tmp_path: Path) -> None:
    pipeline, fresh = wan_two(), wan_two()
    moved(add_lora(pipeline, 2, seed=0))
    files = save_lora(pipeline, tmp_path)
    assert files["transformer_2"] == tmp_path / "transformer_2" / WEIGHTS
    load_lora(fresh, tmp_path)
    call = tiny.wan_prompts(ROWS, 1.0)

    def latents(of: Any) -> torch.Tensor:
        of_call = call | {"generator": sample_generators(ROWS, 3)}
        return sample_latents(of, uniform(4), [of_call])

    assert (latents(fresh) - latents(pipeline)).abs().max() < 1e-6
    assert not torch.allclose(latents(wan_two()), latents(pipeline))


def test_an_adapter_of_the_user_is_part_of_the_teacher(tmp_path: Path) -> None:
    """It stays on while the student's trains, in its own file nothing of it, and both together
    are the student."""
    author = tiny.sd3()
    moved(add_lora(author, 3, seed=4))
    save_lora(author, tmp_path / "theirs")
    pipeline = tiny.sd3()
    pipeline.load_lora_weights(tmp_path / "theirs", adapter_name="theirs")
    teacher = sd3_latents(pipeline)
    assert (teacher - sd3_latents(author)).abs().max() < 1e-6
    weights = add_lora(pipeline, 2, seed=0)
    assert torch.allclose(sd3_latents(pipeline), teacher, atol=1e-6)
    moved(weights)
    student = sd3_latents(pipeline)
    save_lora(pipeline, tmp_path / "ours")
    fresh = tiny.sd3()
    fresh.load_lora_weights(tmp_path / "theirs", adapter_name="theirs")
    fresh.load_lora_weights(tmp_path / "ours", adapter_name="ours")
    fresh.set_adapters(["theirs", "ours"])
    assert (sd3_latents(fresh) - student).abs().max() < 1e-5
    remove_lora(pipeline)
    assert torch.allclose(sd3_latents(pipeline), teacher, atol=1e-6)


def test_small_steps_are_not_lost_in_bfloat16() -> None:
    """A thousandth of 2^-9 a step, a thousand times, is a step that bfloat16 sees."""
    pipeline = tiny.sd3().to(dtype=torch.bfloat16)
    weights = all_weights(pipeline)
    name, there = next(iter(weights.there.items()))
    start = there.detach().float().clone()
    for _ in range(1000):
        with torch.no_grad():
            weights.weights[0].mul_(1.0 + 2e-5)
        weights.push()
    assert weights.weights[0].dtype == torch.float32
    assert there.dtype == torch.bfloat16
    ratio = there.detach().float().norm() / start.norm()
    assert ratio == pytest.approx(1.00002**1000, rel=2e-3), name


def test_gradients_are_collected_and_the_average_is_of_the_weights_alone() -> None:
    pipeline = tiny.sd3()
    weights = add_lora(pipeline, 2, seed=0)
    first = next(iter(weights.there.values()))
    for _ in range(2):
        first.grad = torch.ones_like(first)
        weights.collect()
        assert first.grad is None
    assert torch.equal(weights.weights[0].grad, torch.full_like(first, 2.0))
    twin = copy.deepcopy(weights)
    assert twin.there is not weights.there
    assert list(twin.there) == list(weights.there)
    assert all(a is b for a, b in zip(twin.there.values(), weights.there.values(), strict=True))
    with torch.no_grad():
        twin.weights[0].fill_(3.0)
    assert not (weights.weights[0] == 3.0).all()
    assert not (first == 3.0).all()
    twin.push()
    assert bool((first == 3.0).all())


def test_what_takes_no_adapter_is_refused() -> None:
    with pytest.raises(InputError, match="HunyuanImagePipeline has no load_lora_weights"):
        check_adaptable(odd.hunyuan_image())
    pipeline = tiny.sd3()

    class Bare(torch.nn.Module):
        pass

    pipeline.register_modules(transformer=Bare())
    with pytest.raises(InputError, match="a Bare, takes no LoRA"):
        check_adaptable(pipeline)
