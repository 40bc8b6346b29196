"""Whether ComfyUI's loader finds a layer for every name in a student's LoRA.

Its `model_lora_keys_unet` takes ``transformer.`` before the names that diffusers gives the layers
of SD3 and Flux, which `mmdit_to_diffusers` and `flux_to_diffusers` list; a name that is not among
them is left out there with no more than a line in the log. The lists, read there, are written as
patterns here. Wan, LTX and others have names of their own there, for which diffusers' prefix is
not taken.
"""

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from boss_core.interop.pipeline_lora import WEIGHTS, add_lora, save_lora
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.families import FAMILIES

EMBEDDERS = [
    r"time_text_embed\.(timestep|text)_embedder\.linear_[12]",
    r"context_embedder",
    r"norm_out\.linear",
    r"proj_out",
]
KNOWN = {
    "sd3": [
        *EMBEDDERS,
        r"pos_embed\.proj",
        r"transformer_blocks\.\d+\.attn2?\.(to_[qkv]|to_out\.0)",
        r"transformer_blocks\.\d+\.attn\.(add_[qkv]_proj|to_add_out)",
        r"transformer_blocks\.\d+\.(norm1|norm1_context)\.linear",
        r"transformer_blocks\.\d+\.(ff|ff_context)\.net\.(0\.proj|2)",
    ],
    "flux": [
        *EMBEDDERS,
        r"x_embedder",
        r"time_text_embed\.guidance_embedder\.linear_[12]",
        r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
        r"transformer_blocks\.\d+\.(norm1|norm1_context)\.linear",
        r"transformer_blocks\.\d+\.(ff|ff_context)\.net\.(0\.proj|2)",
        r"single_transformer_blocks\.\d+\.(norm\.linear|proj_mlp|proj_out|attn\.to_[qkv])",
    ],
}


@pytest.mark.parametrize("family", KNOWN)
def test_every_name_is_known_there(family: str, tmp_path: Path) -> None:
    pipeline = FAMILIES[family].make()
    add_lora(pipeline, 2, seed=0)
    save_lora(pipeline, tmp_path)
    keys = load_file(tmp_path / WEIGHTS)
    layers = {re.sub(r"\.lora_[AB]\.weight$", "", key) for key in keys}
    assert all(layer.startswith("transformer.") for layer in layers)
    names = {layer.removeprefix("transformer.") for layer in layers}
    known = re.compile("|".join(KNOWN[family]))
    assert {name for name in names if not known.fullmatch(name)} == set()
    assert len(names) > 10


def test_other_families_have_names_of_their_own(tmp_path: Path) -> None:
    pipeline = tiny.wan()
    add_lora(pipeline, 2, seed=0)
    save_lora(pipeline, tmp_path)
    known = re.compile("|".join(KNOWN["sd3"] + KNOWN["flux"]))
    names = {
        key.split(".lora_")[0].removeprefix("transformer.") for key in load_file(tmp_path / WEIGHTS)
    }
    assert any(not known.fullmatch(name) for name in names)
