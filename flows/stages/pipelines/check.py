"""What can be known of a diffusers teacher before any work: its files, and the names of what it is
called with. The teacher's stage, which loads its networks, refuses the rest."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from boss_core.errors import InputError
from flows.config import Params
from flows.stages.pipelines.files import adapters, prompts_file
from flows.stages.pipelines.revision import HUB

INDEX = "model_index.json"


def check_pipeline(params: Params) -> None:
    """InputError for files that are not there, and for arguments that no call takes."""
    of = params.teacher.pipeline
    for needed in ("diffusers", "peft"):
        if importlib.util.find_spec(needed) is None:
            raise InputError(
                f"params.yaml: teacher.source: diffusers: {needed} is not installed; pip install"
                " 'boss-flow[diffusers]' needed"
            )
    # They import torch, which nobody waits for who has no pipeline.
    from flows.search.hub import on_hub
    from flows.search.images import image_files
    from flows.search.options import parse_shape
    from flows.search.pipeline_call import SampleCalls, call_arguments, check_names, read_prompts
    from flows.stages.pipelines.opened import as_parameters, call_texts

    path = prompts_file(Path(of.prompts))
    own = adapters(Path(of.lora))
    whole = [name for name in params.finetune.methods if name != "boss_lora"]
    if own and whole:
        raise InputError(
            f"params.yaml: finetune.methods: {whole[0]}, which trains all weights, with"
            f" teacher.pipeline.lora: {own[0]}; boss_lora, or no adapters beside the weights,"
            " needed"
        )
    with as_parameters():
        rows = read_prompts(path)
        size = None if of.size is None else parse_shape(of.size, 2)
        calls = SampleCalls(rows, call_arguments(of.guidance, size, call_texts(of.call)))
        if files := image_files(calls.shared):
            raise InputError(
                f"--call: {next(iter(files))}: an image, which DVC would not see change; in rows of"
                " the prompts, in a folder of both, needed"
            )
        for row in rows:
            for images in image_files(row.arguments).values():
                _check_watched(images, Path(of.prompts), row.where)
        if of.hub is None:
            kind = _class_of(Path(params.teacher.path))
        else:
            kind = _known(on_hub(of.hub, HUB).kind, f"{HUB}: {of.hub}")
        check_names(kind, calls)
    if params.cost.samples == "auto":
        print(
            "check: cost.max_samples: not used, as the costs of a pipeline are measured until its"
            " steps could lose little, on some 100 trajectories at most",
            flush=True,
        )


def _check_watched(images: list[Path], prompts: Path, where: str) -> None:
    for image in images:
        if not prompts.is_dir() or prompts.resolve() not in image.resolve().parents:
            raise InputError(
                f"{where}: {image}: not in the folder of teacher.pipeline.prompts, {prompts}, so"
                " that DVC would not see it change; a folder of the prompts and their images needed"
            )


def _class_of(folder: Path) -> object:
    """That of the pipeline in a folder."""
    needed = "a folder as a pipeline's save_pretrained writes it needed"
    try:
        name = json.loads((folder / INDEX).read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"params.yaml: teacher.path: {folder}: no {INDEX} that names a pipeline; {needed}"
        ) from error
    return _known(str(name), f"params.yaml: teacher.path: {folder}")


def _known(name: str, where: str) -> object:
    """An object of the class of a pipeline, for what looks at its class alone."""
    import diffusers

    kind: Any = getattr(diffusers, name, None)
    if kind is None:
        raise InputError(
            f"{where}: a {name}, which the installed diffusers"
            f" {diffusers.__version__} does not have; a newer one, or another pipeline, needed"
        )
    found: object = object.__new__(kind)
    return found
