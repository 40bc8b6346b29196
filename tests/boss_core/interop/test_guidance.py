"""What turns a pipeline's guidance off."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import sample_generators
from boss_core.interop.guidance import without_guidance
from boss_core.interop.teacher_forcing import straighten_call, teacher_states
from boss_core.ode.timesteps import uniform
from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny

KINDS: dict[str, tuple[Callable[[], Any], Callable[[range], dict[str, Any]], dict[str, Any], int]]
KINDS = {
    "sd3": (tiny.sd3, lambda r: tiny.sd3_prompts(r, 4.0), {"guidance_scale": 1.0}, 1),
    "no guidance": (tiny.sd3, lambda r: tiny.sd3_prompts(r, 1.0), {}, 1),
    "flux, an input of its network": (tiny.flux, tiny.flux_prompts, {}, 1),
    "wan": (tiny.wan, tiny.wan_prompts, {"guidance_scale": 1.0}, 1),
    "qwen": (tiny.qwen_image, tiny.qwen_image_prompts, {"true_cfg_scale": 1.0}, 1),
    "z-image, from 0 on": (odd.z_image, odd.z_image_prompts, {"guidance_scale": 0.0}, 1),
    "with a control network": (
        odd.sd3_controlnet, odd.sd3_controlnet_prompts, {"guidance_scale": 1.0}, 2,
    ),
    "ltx-2, of two states": (
        odd.ltx2, odd.ltx2_prompts, {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}, 1,
    ),
    "of three kinds, by default": (
        odd.ltx2, lambda r: ltx2_defaults(r),
        {
            "guidance_scale": 1.0, "audio_guidance_scale": 1.0, "stg_scale": 0.0,
            "audio_stg_scale": 0.0, "modality_scale": 1.0, "audio_modality_scale": 1.0,
        },
        1,
    ),
}  # fmt: skip


def ltx2_defaults(rows: range) -> dict[str, Any]:
    """Without any scale: its defaults evaluate the network four times a step."""
    call = {k: v for k, v in odd.ltx2_prompts(rows).items() if not k.endswith("_scale")}
    return call | {"spatio_temporal_guidance_blocks": [0]}


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_is_turned_off(kind: str) -> None:
    make, prompts, expected, evaluations = KINDS[kind]
    rows = range(2)
    call = prompts(rows) | {"generator": sample_generators(rows, 3)}
    before = [g.get_state() for g in call["generator"]]
    changes, of_step = without_guidance(make(), call, uniform(3))
    assert changes == expected
    assert of_step == evaluations
    assert all((g.get_state() == s).all() for g, s in zip(call["generator"], before, strict=True))


def test_a_network_for_guidance_alone_is_refused() -> None:
    rows = range(2)
    call = odd.ideogram4_prompts(rows) | {"generator": sample_generators(rows, 3)}
    with pytest.raises(InputError, match=r"no argument of .* turns its guidance off"):
        without_guidance(odd.ideogram4(), call, uniform(3))


def test_a_call_that_is_no_walk_is_refused_for_what_it_is() -> None:
    """And not for its guidance: no change of it would help."""
    rows = range(2)
    call = tiny.flux_prompts(rows) | {"generator": sample_generators(rows, 3)}
    with pytest.raises(InputError, match="leaves its steps to a pipeline within it"):
        without_guidance(odd.visualcloze(), call, uniform(3))


def test_nothing_is_said_of_calls_that_are_not_the_users(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen-Image warns of a negative prompt without guidance, which a student's call has."""
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    pipeline, rows = tiny.qwen_image(), range(2)
    call = tiny.qwen_image_prompts(rows) | {"generator": sample_generators(rows, 3)}
    changes, _ = without_guidance(pipeline, call, uniform(2))
    states, _ = teacher_states(pipeline, uniform(2), (0, 1, 2), call)
    call |= changes | {"generator": sample_generators(rows, 3)}
    straighten_call(pipeline, uniform(2), "euler", call, states, None)
    assert caplog.text == ""
    pipeline(**call, num_inference_steps=1, output_type="latent")
    assert "classifier-free guidance is not enabled" in caplog.text
