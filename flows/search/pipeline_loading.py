"""A diffusers pipeline, from where a user has it."""

import warnings
from pathlib import Path
from typing import Any

import torch

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import pipeline_hash
from boss_core.interop.few_steps import refuse_distilled
from flows.search.hub import on_hub
from flows.search.pipeline_call import one_line
from flows.search.repeats import say_once

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pipeline(source: str, dtype: str, device: torch.device) -> tuple[Any, str]:
    """A pipeline from a folder, or by its name on the hub (`on_hub`), and the hash of its weights.

    InputError where diffusers is not installed, or the pipeline cannot be loaded.
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype: {dtype!r}; {', '.join(DTYPES)} known")
    try:
        from diffusers import DiffusionPipeline
    except ModuleNotFoundError as error:
        raise InputError(
            "--pipeline: diffusers is not installed; pip install 'boss-flow[diffusers]' needed"
        ) from error
    name, revision = source, None
    if not Path(source).exists():
        found = on_hub(source)
        name, revision = found.name, found.revision  # all its files of one commit
    try:
        with warnings.catch_warnings():
            # An argument that diffusers itself hands on, and the hub's client no longer takes.
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument")
            _check_index(name, revision)
            # Weights come as safetensors or not at all: a pickle could run code.
            pipeline = DiffusionPipeline.from_pretrained(
                name, revision=revision, use_safetensors=True, **{dtype_argument(): DTYPES[dtype]}
            )
    except (
        OSError, ValueError, AttributeError, ImportError, TypeError, KeyError, RecursionError,
    ) as error:  # fmt: skip
        unknown = isinstance(error, AttributeError)  # a class that this diffusers does not have
        needed = "; one of the installed diffusers, or a newer diffusers, needed" if unknown else ""
        raise InputError(f"--pipeline: {source}: {one_line(error)}{needed}") from error
    say_once()
    pipeline.set_progress_bar_config(disable=True)  # the search has one of its own
    weights = pipeline_hash(pipeline)  # before they are on a GPU, to be copied back
    return pipeline.to(device), weights


def _check_index(source: str, revision: str | None) -> None:
    """InputError for a pipeline whose ``model_index.json``, which is a few lines, tells that it
    will be refused."""
    import diffusers

    index = diffusers.DiffusionPipeline.load_config(source, revision=revision)
    kind = getattr(diffusers, str(index.get("_class_name")), None)
    scheduler = index.get("scheduler")
    if isinstance(kind, type) and isinstance(scheduler, list | tuple):
        refuse_distilled(kind, str(scheduler[-1]), index)


def dtype_argument() -> str:
    """The argument of the installed diffusers' ``from_pretrained`` that sets the dtype. Versions
    before 0.40 ignore ``dtype``; those from there on say of ``torch_dtype`` that it will go."""
    import diffusers
    from packaging.version import Version

    before = Version(diffusers.__version__) < Version("0.40")
    return "torch_dtype" if before else "dtype"
