"""A pipeline is loaded in the dtype that is asked for, by any diffusers that the project takes."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

import diffusers
import huggingface_hub

from boss_core.errors import InputError
from flows.search.pipeline_loading import dtype_argument, load_pipeline
from tests.helpers import tiny_pipelines


def test_its_dtype_and_no_warning(tmp_path: Path) -> None:
    tiny_pipelines.sd3_with_text(tmp_path / "pipe")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline, _ = load_pipeline(str(tmp_path / "pipe"), "bfloat16", torch.device("cpu"))
    assert pipeline.transformer.dtype == torch.bfloat16
    assert pipeline.text_encoder_3.dtype == torch.bfloat16


def test_one_of_the_hub_warns_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's client has left it in its cache, from which it comes without a network."""
    kept = tmp_path / "models--someone--pipe"
    tiny_pipelines.sd3_with_text(kept / "snapshots" / ("a" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    # Its client has read its settings long before.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline, _ = load_pipeline("someone/pipe", "float32", torch.device("cpu"))
    assert pipeline.text_encoder_3.dtype == torch.float32


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"_class_name": "Flux2KleinPipeline", "is_distilled": True}, "says is_distilled"),
        ({"_class_name": "Flux2KleinKVPipeline"}, "says is_distilled"),
        ({"_class_name": "StableDiffusion3Pipeline",
          "scheduler": ["diffusers", "FlowMatchLCMScheduler"]}, "with a FlowMatchLCMScheduler"),
    ],
)  # fmt: skip
def test_what_is_distilled_is_refused_before_its_weights(
    tmp_path: Path, index: dict[str, Any], said: str
) -> None:
    """Which are not even there."""
    euler = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (tmp_path / "model_index.json").write_text(json.dumps({"scheduler": euler} | index))
    with pytest.raises(InputError, match=said):
        load_pipeline(str(tmp_path), "float32", torch.device("cpu"))


@pytest.mark.parametrize(
    ("version", "argument"),
    [("0.38.0", "torch_dtype"), ("0.39.0", "torch_dtype"), ("0.40.0.dev0", "torch_dtype"),
     ("0.40.0", "dtype"), ("0.42.1", "dtype"), ("1.0.0", "dtype")],
)  # fmt: skip
def test_it_is_named_as_each_version_takes_it(
    monkeypatch: pytest.MonkeyPatch, version: str, argument: str
) -> None:
    """0.38 and 0.39 ignore ``dtype``, and load float32."""
    monkeypatch.setattr(diffusers, "__version__", version)
    assert dtype_argument() == argument
