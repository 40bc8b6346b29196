"""The walk through the pipelines of the installed diffusers."""

import re
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from boss_core.errors import InputError
from studies.pipelines import NOT_TRIED, Row, flow_pipelines, rows, straighten_small, table
from tests.helpers.more_pipelines import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.long]

# Made for a flow's scheduler, for any scheduler, and for a solver that can be told to serve a flow;
# and of the same families, others that are not.
FLOWS = (
    "StableDiffusion3Pipeline", "FluxFillPipeline", "WanVACEPipeline", "QwenImageEditPipeline",
    "LTX2Pipeline", "HunyuanImagePipeline", "BriaFiboPipeline", "MotifVideoPipeline",
    "SanaPipeline", "SkyReelsV2Pipeline", "AnyFlowPipeline", "Kandinsky6TI2VAPipeline",
)  # fmt: skip
OTHERS = (
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "CogVideoXPipeline", "DiTPipeline",
    "KandinskyV22Pipeline", "StableAudioPipeline", "DiffusionPipeline", "FluxPriorReduxPipeline",
    "AnimateDiffPipeline", "PIAPipeline", "StableDiffusionModelEditingPipeline",
)  # fmt: skip


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return flow_pipelines()


def test_the_pipelines_of_flows_are_found(known: dict[str, Any]) -> None:
    assert set(FLOWS) <= set(known)
    assert not set(OTHERS) & set(known)


def test_small_components_are_of_pipelines_that_are_found(known: dict[str, Any]) -> None:
    """A name with a slip in it would never be tried."""
    assert {name.split(" ")[0] for name in SMALL} <= set(known)


def test_a_table_of_a_few(known: dict[str, Any]) -> None:
    """One that trains, one that is refused, one that was not tried."""
    small = {name: SMALL[name] for name in ("WanPipeline", "BriaPipeline")}
    seen: list[Row] = []
    only = ["WanPipeline", "BriaPipeline", "WanAnimatePipeline", "PRXPipeline", "LTX2DFRPipeline"]
    found = rows(small, only, seen.append)
    assert seen == found
    wan, bria, animate, prx, dfr = found
    assert wan.trains
    assert (wan.guided, wan.student, wan.off) == (2.0, 1.0, "guidance_scale=1.0")
    assert (wan.states, wan.files) == (1, 1)
    assert wan.loss[1] < 0.5 * wan.loss[0]
    assert wan.reload < 1e-6
    assert bria.reason.startswith("BriaPipeline has no load_lora_weights")
    assert animate.reason == NOT_TRIED
    assert "PRXTransformer2DModel, takes no LoRA" in prx.reason  # by its class alone
    assert dfr.reason.startswith("LTX2DFRPipeline takes no num_inference_steps, but sigmas, steps")
    text = table(found)
    assert "1 classes are straightened, 3 refused, 1 not tried" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count(" | ") for line in lines[:3]} == {6}
    assert {line.count(" | ") for line in lines[3:]} == {1}
    assert lines[2].startswith("| `WanPipeline` | 2 to 1 | `guidance_scale=1.0` | 1 | 1 | ")
    assert "Not tried, for want of small components: `WanAnimatePipeline`." in text


# What pipelines do that no other does, and that a walk through them found.
PARTICULAR = {
    "its ControlNet lacks what gradients ask for": "ZImageControlNetPipeline",
    "one of two states is stepped by a constant": "LTX2HDRPipeline",
    "a scheduler for each frame, at whole times": "SkyReelsV2DiffusionForcingPipeline",
    "it takes no list of generators": "WanVACEPipeline",
    "an image encoder of its own": "WanImageToVideoPipeline (2.1)",
    "keys and values are not kept, as is asked": "QwenImage21Pipeline (use_kv_cache=False)",
    "attention processors of its own": "StableDiffusion3PAGPipeline",
    "a network within its network, and videos to go by": "WanAnimatePipeline",
    "texts and pictures make one of both": "VisualClozeGenerationPipeline",
}


@pytest.mark.parametrize("what", PARTICULAR)
def test_pipelines_with_ways_of_their_own(what: str) -> None:
    name = PARTICULAR[what]
    row = straighten_small(name, SMALL[name])
    assert row.trains, row.reason
    assert row.loss[1] < 0.5 * row.loss[0]
    assert row.reload < 1e-6


REFUSED = {
    "no way to write a LoRA": (
        "HunyuanImagePipeline",
        "HunyuanImagePipeline has no load_lora_weights",
    ),
    "no way to turn guidance off": (
        "Ideogram4Pipeline",
        "no argument of Ideogram4Pipeline turns its guidance off",
    ),
    "distilled, by its scheduler": (
        "SanaSprintPipeline",
        "SanaSprintPipeline with a SCMScheduler, which is for a network distilled for a few steps",
    ),
    "distilled, by a setting": (
        "LTXPipeline (distilled)",
        "the FlowMatchEulerDiscreteScheduler of LTXPipeline has stochastic_sampling: its network",
    ),
    "from an image": ("FluxImg2ImgPipeline", "took 4 of the 6 steps of the grid; one that starts"),
    "inpainting": ("FluxInpaintPipeline", "changes the states between steps 0 and 1 (inpainting"),
    "a pipeline within": ("VisualClozePipeline", "VisualClozePipeline leaves its steps to"),
    "distilled, by its class": (
        "Flux2KleinKVPipeline",
        "the model_index.json of this Flux2KleinKVPipeline says is_distilled: its network is",
    ),
    "steps that it leaves out": (
        "LTXI2VLongMultiPromptPipeline",
        "took 1 of the 2 steps of the grid",
    ),
    "a cache from step to step": (
        "QwenImage21Pipeline",
        "keeps what its network computed in one step for the next ones (a cache of keys and"
        " values, as Flux.2 Klein KV's); use_kv_cache=False needed",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_straightened_is_refused_with_the_reason(what: str) -> None:
    name, reason = REFUSED[what]
    row = straighten_small(name, SMALL[name])
    assert not row.trains
    assert row.reason.startswith(reason)
    assert "\n" not in row.reason
    assert re.search(r"needed( \(.*\))?$", row.reason), "says what would be right"


def test_a_name_that_is_no_such_class_is_refused() -> None:
    with pytest.raises(InputError, match="--only: DiTPipeline: no flow-matching pipeline"):
        rows({}, ["DiTPipeline"])
