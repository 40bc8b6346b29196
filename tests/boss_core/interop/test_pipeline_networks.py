"""The hash of a pipeline's weights: what changes a velocity changes it, and nothing else."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from peft import LoraConfig, inject_adapter_in_model

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import pipeline_hash, sample_generators
from boss_core.interop.teacher_forcing import straighten_call, teacher_states
from boss_core.ode.timesteps import uniform
from flows.straighten.teacher import encode_all
from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.image_pipelines import SD3


def test_the_hash_is_that_of_the_denoiser_alone_where_there_is_no_other_network() -> None:
    """Schedules of before carry it: pinned by the bytes that it is made of."""
    import hashlib

    pipeline = tiny.sd3()
    digest = hashlib.sha256()
    for name, tensor in sorted(pipeline.transformer.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    assert pipeline_hash(pipeline) == digest.hexdigest()


@pytest.mark.parametrize(
    ("make", "name"),
    [(odd.ideogram4, "unconditional_transformer"), (odd.sd3_controlnet, "controlnet")],
)
def test_every_network_is_in_it_and_the_autoencoder_is_not(make: Any, name: str) -> None:
    pipeline = make()
    before = pipeline_hash(pipeline)
    if pipeline.vae is not None:
        next(pipeline.vae.parameters()).data.add_(1.0)
        assert pipeline_hash(pipeline) == before
    next(getattr(pipeline, name).parameters()).data.add_(1.0)
    assert pipeline_hash(pipeline) != before


def test_compiling_does_not_change_it() -> None:
    pipeline = tiny.sd3()
    before = pipeline_hash(pipeline)
    block = pipeline.transformer.transformer_blocks[0]
    pipeline.transformer.transformer_blocks[0] = torch.compile(block)
    assert pipeline_hash(pipeline) == before
    pipeline.transformer = torch.compile(pipeline.transformer)
    assert pipeline_hash(pipeline) == before


def _lora(r: int = 2) -> LoraConfig:
    return LoraConfig(r=r, lora_alpha=4, target_modules=["to_q", "q_proj"], init_lora_weights=False)


def test_adapters_and_their_scales_change_it() -> None:
    pipeline = tiny.sd3()
    plain = pipeline_hash(pipeline)
    torch.manual_seed(1)
    pipeline.transformer.add_adapter(_lora(), "one")
    first = pipeline_hash(pipeline)
    assert first == pipeline_hash(pipeline)
    pipeline.transformer.set_adapters(["one"], weights=[0.3])
    scaled = pipeline_hash(pipeline)
    pipeline.transformer.disable_adapters()
    off = pipeline_hash(pipeline)
    assert len({plain, first, scaled, off}) == 4
    pipeline.transformer.enable_adapters()
    assert pipeline_hash(pipeline) == scaled
    pipeline.transformer.delete_adapters("one")
    torch.manual_seed(2)
    pipeline.transformer.add_adapter(_lora(), "one")
    assert pipeline_hash(pipeline) != first  # other weights


def test_adapters_of_a_text_encoder_change_it(tmp_path: Any) -> None:
    from diffusers import StableDiffusion3Pipeline

    tiny.sd3_with_text(tmp_path)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path)
    plain = pipeline_hash(pipeline)
    hashes = {plain}
    for seed in (1, 2):
        torch.manual_seed(seed)
        inject_adapter_in_model(_lora(), pipeline.text_encoder, f"adapter{seed}")
        hashes.add(pipeline_hash(pipeline))
    assert len(hashes) == 3


def test_the_scale_of_an_image_prompt_changes_it() -> None:
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0

    pipeline = tiny.sd3()
    torch.manual_seed(0)
    processor = SD3IPAdapterJointAttnProcessor2_0(32, 32, 8)
    pipeline.transformer.set_attn_processor(processor)
    before = pipeline_hash(pipeline)
    processor.scale = 0.3
    assert pipeline_hash(pipeline) != before


class Scaled(torch.Tensor):
    """A weight in 8 bits with its scale, as torchao's: a tensor that is made of others."""

    codes: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> "Scaled":
        found = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        found.codes, found.scale = codes, scale
        return found

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            return Scaled(args[0].codes, args[0].scale)
        raise NotImplementedError(function)


def test_quantised_weights_have_one() -> None:
    """torch's own, whose state holds tuples and dtypes, and tensors made of others."""
    pipeline = tiny.sd3()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantise = torch.ao.quantization.quantize_dynamic
        pipeline.transformer = quantise(pipeline.transformer, {torch.nn.Linear}, dtype=torch.qint8)
        found = pipeline_hash(pipeline)
        assert found == pipeline_hash(pipeline)
        other = tiny.sd3()
        next(
            m for m in other.transformer.modules() if isinstance(m, torch.nn.Linear)
        ).weight.data.mul_(2)
        other.transformer = quantise(other.transformer, {torch.nn.Linear}, dtype=torch.qint8)
        assert pipeline_hash(other) != found  # only a scale differs

    hashes = set()
    for scale in (1.0, 2.0):
        pipeline = tiny.sd3()
        layer = pipeline.transformer.proj_out
        codes = torch.ones(layer.weight.shape, dtype=torch.int8)
        made = Scaled(codes, torch.tensor(scale))
        layer.weight = torch.nn.Parameter(made, requires_grad=False)
        hashes.add(pipeline_hash(pipeline))
    assert len(hashes) == 2


def test_eight_bit_floats_have_one_and_weights_elsewhere_none() -> None:
    pipeline = tiny.sd3()
    pipeline.transformer.proj_out.weight.data = pipeline.transformer.proj_out.weight.data.to(
        torch.float8_e4m3fn
    )
    assert len(pipeline_hash(pipeline)) == 64
    pipeline.transformer.proj_out.to("meta")
    with pytest.raises(InputError, match=r"weights of proj_out.* are offloaded"):
        pipeline_hash(pipeline)


class StoppedError(Exception):
    pass


def stop(*_: Any) -> None:
    raise StoppedError


def test_attention_processors_are_put_back_wherever_a_call_is_stopped() -> None:
    """SD3 with perturbed attention has some of its own in its network while it is called: in a walk
    that fails, after the last step that a student is taught, and once its prompts are encoded."""
    family = SD3["StableDiffusion3PAGPipeline"]
    pipeline, rows = family.make(), range(2)

    def call(**changes: Any) -> dict[str, Any]:
        return family.prompts(rows) | {"generator": sample_generators(rows, 3)} | changes

    def plain() -> torch.Tensor:
        of_call = call(pag_scale=0.0)
        return pipeline(**of_call, num_inference_steps=2, output_type="latent").images

    expected, before = plain(), dict(pipeline.transformer.attn_processors)
    states, evaluations = teacher_states(pipeline, uniform(2), (0, 1, 2), call())
    assert evaluations.tolist() == [3.0, 3.0]  # with guidance of both kinds
    calls: list[tuple[Callable[[], Any], Any]] = [
        (lambda: teacher_states(pipeline, uniform(2), (0, 2), call(), on_step=stop), StoppedError),
        (lambda: straighten_call(pipeline, uniform(2), "euler", call(), states, None), None),
        (lambda: encode_all(pipeline, [call, call]), None),
    ]
    for stopped, error in calls:
        with pytest.raises(error) if error else nullcontext():
            stopped()
        assert pipeline.transformer.attn_processors == before
        assert torch.equal(plain(), expected)
