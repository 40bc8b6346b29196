"""Calls made ready for a pipeline: whose arguments it takes and heeds, and images for a batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import estimate_pipeline_cost, sample_latents
from boss_core.ode.timesteps import uniform
from flows.search.pipeline_arguments import prepare_calls
from flows.search.pipeline_call import PromptRow, SampleCalls
from tests.helpers import tiny_pipelines as tiny
from tests.helpers import told_pipelines as told
from tests.helpers.flow_pipelines import FlowTransformer
from tests.helpers.memory_errors import MEMORY
from tests.helpers.vace_pipeline import wan_vace

SHARED: dict[str, dict[str, Any]] = {
    "qwen_image_edit": {"height": 64, "width": 64},
    "flux_kontext": {"height": 32, "width": 32, "_auto_resize": False, "max_area": 1024},
    "wan_i2v": {"height": 32, "width": 32, "num_frames": 5, "guidance_scale": 1.0},
}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    # Qwen-Image-Edit makes every image a megapixel large, which takes a while here.
    module = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit"
    monkeypatch.setattr(f"{module}.calculate_dimensions", lambda area, ratio: (64, 64, None))
    paths = []
    for name in ("red", "blue"):
        Image.new("RGB", (32, 32), name).save(tmp_path / f"{name}.png")
        paths.append(str(tmp_path / f"{name}.png"))
    return paths


@pytest.mark.parametrize(
    ("name", "form"), [("qwen_image_edit", "each"), ("flux_kontext", "once"), ("wan_i2v", "once")]
)
def test_a_sample_has_its_image_in_any_batch(images: list[str], name: str, form: str) -> None:
    pipeline = getattr(told, name)()
    rows = [PromptRow(text, {"image": images[k]}) for text, k in (("a", 0), ("b", 0), ("c", 1))]
    calls = prepare_calls(pipeline, SampleCalls(rows, SHARED[name]), 4)
    assert calls.images == form
    assert prepare_calls(pipeline, calls, 4) is calls

    def ends(size: int) -> torch.Tensor:
        parts = calls.parts(range(5), size)
        return sample_latents(pipeline, uniform(2), (calls.call(p, seed=0) for p in parts))

    together, alone = ends(4), ends(1)
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    # The image tells: with the other one a sample is another.
    other = SampleCalls([PromptRow("a", {"image": images[1]})], SHARED[name])
    found = sample_latents(pipeline, uniform(2), [other.call(range(1), seed=0)])
    assert (found - alone[:1]).abs().max() > 1e-3


def test_a_pipeline_of_one_prompt_a_call_has_one(
    images: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = told.flux_kontext()
    prepare = type(pipeline).prepare_latents

    def one_only(self: Any, image: Any, batch_size: int, *more: Any) -> Any:
        if batch_size > 1:  # as QwenImageEditPlusPipeline
            raise ValueError("currently only supports batch_size=1")
        return prepare(self, image, batch_size, *more)

    monkeypatch.setattr(type(pipeline), "prepare_latents", one_only)
    rows = [PromptRow("a", {"image": images[0]})]
    calls = prepare_calls(pipeline, SampleCalls(rows, SHARED["flux_kontext"]), 4)
    assert calls.images == "alone"
    assert "one sample at a time" in capsys.readouterr().out
    assert [len(part) for part in calls.parts(range(3), 4)] == [1, 1, 1]


def test_a_pipeline_that_takes_no_lists_is_called_for_each_sample(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wan-VACE: not even of one prompt; a search of it is that of its single calls."""
    pipeline = wan_vace()
    own = {"height": 32, "width": 32, "num_frames": 5, "guidance_scale": 5.0}
    shared = own | {"negative_prompt": "dull"}
    calls = prepare_calls(pipeline, SampleCalls([PromptRow("a"), PromptRow("b")], shared), 4)
    assert calls.images == "single"
    assert "takes no batch of prompts: one sample at a time" in capsys.readouterr().out
    parts = list(calls.parts(range(3), 4))
    assert [len(part) for part in parts] == [1, 1, 1]
    found = estimate_pipeline_cost(pipeline, uniform(4), (calls.call(p, seed=0) for p in parts))
    assert found.matrix.samples == 3
    assert found.nfe.tolist() == [2.0] * 4
    with pytest.raises(ValueError, match="list of prompts is not yet supported"):
        pipeline(["a"], **own)


def test_a_library_that_a_pipeline_lacks_is_named() -> None:
    """Wan-VACE cleans prompts by ftfy, which diffusers does without until then."""

    class Bare(type(wan_vace())):  # type: ignore[misc]
        def encode_prompt(self, *args: Any, **more: Any) -> Any:
            raise NameError("name 'ftfy' is not defined", name="ftfy")

    pipeline = Bare(**wan_vace().components)
    size = {"height": 32, "width": 32, "num_frames": 5}
    with pytest.raises(InputError, match=r"NameError: name 'ftfy' is not .*; pip install ftfy"):
        prepare_calls(pipeline, SampleCalls([PromptRow("a")], size), 1)


def test_an_argument_of_a_row_is_refused_with_its_line() -> None:
    size = {"height": 64, "width": 64}

    def prepared(**own: Any) -> SampleCalls:
        rows = [PromptRow("a", where="p: line 1"), PromptRow("b", own, where="p: line 2")]
        return prepare_calls(told.qwen_image(), SampleCalls(rows, size), 2)

    with pytest.raises(InputError, match="p: line 2: _QwenImage takes no image; an arg"):
        prepared(image="a.png")
    with pytest.raises(InputError, match="p: line 2: guidance_scale=4 changes nothing in the lat"):
        prepared(guidance_scale=4)
    assert prepared(true_cfg_scale=4, negative_prompt="dull").images == "once"


@pytest.mark.parametrize(("parts", "told"), [(None, False), (1, True)])
def test_a_network_for_few_steps_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: int | None, told: bool
) -> None:
    """In a line, before the search: a flow in closed form, and one step that was made of it."""
    tiny.sd3_with_text(tmp_path)
    pipeline = tiny.quiet(StableDiffusion3Pipeline.from_pretrained(tmp_path))
    pipeline.register_modules(transformer=FlowTransformer(parts))
    prepare_calls(pipeline, SampleCalls([PromptRow("cat")], {"height": 16, "width": 16}), 2)
    out = capsys.readouterr().out
    assert ("distilled or straightened for few steps" in out) == told
    assert len(out.splitlines()) == told


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_a_lack_of_memory_is_said_to_be_one(images: list[str], error: Exception) -> None:
    """And not that the pipeline takes no batch with an image, which is found by trying two
    samples; nor that it refuses the call."""
    pipeline = told.flux_kontext()

    def fail(network: Any, args: Any, given: dict[str, Any]) -> None:
        if len(given["hidden_states"]) > 1:
            raise error

    pipeline.transformer.register_forward_pre_hook(fail, with_kwargs=True)
    rows = [PromptRow(text, {"image": images[0]}) for text in ("a", "b")]
    with pytest.raises(InputError, match=r"^--batch-size: out of memory.*; a smaller one needed$"):
        prepare_calls(pipeline, SampleCalls(rows, SHARED["flux_kontext"]), 2)
