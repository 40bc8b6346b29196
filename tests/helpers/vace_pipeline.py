"""A small Wan-VACE that takes its prompts as text."""

from typing import Any

from diffusers import WanVACEPipeline

from tests.helpers.tiny_pipelines import WIDTH, WORDS, quiet
from tests.helpers.told_pipelines import told
from tests.helpers.video_pipelines import OF_WAN


class _WanVACE(WanVACEPipeline):
    def encode_prompt(self, prompt, negative_prompt=None, *args: Any, **more: Any):  # type: ignore[no-untyped-def]
        return told(prompt, WORDS, WIDTH), told(negative_prompt or "", WORDS, WIDTH)


def wan_vace() -> WanVACEPipeline:
    """It takes one prompt and one generator, and no list of either."""
    return quiet(_WanVACE(**OF_WAN["WanVACEPipeline"].make().components))
