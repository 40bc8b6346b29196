"""The call of a diffusers pipeline, as the options of ``boss schedule --pipeline`` say it."""

import ast
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from boss_core.errors import InputError

# Arguments of a pipeline's call that the search sets, or that are options by other names.
_SET = ("prompt", "generator", "latents", "num_inference_steps", "sigmas", "timesteps",
        "output_type", "return_dict", "num_images_per_prompt", "num_videos_per_prompt")  # fmt: skip


def read_prompts(path: Path | None) -> list[str]:
    """One prompt a line; empty lines are left out."""
    if path is None:
        raise InputError("--prompts: missing; a text file with one prompt a line needed")
    try:
        prompts = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}; a text file with one prompt a line needed") from error
    if not prompts:
        raise InputError(f"{path}: no prompts in it; one a line needed")
    return prompts


def call_arguments(
    guidance: float | None, size: tuple[int, ...] | None, given: Sequence[str]
) -> dict[str, Any]:
    """What ``--guidance``, ``--size`` and each ``--call NAME=VALUE`` say of the pipeline's call.
    A value is JSON or Python (numbers, true or True, null or None, lists), or else, and in a
    prompt, the text itself."""
    found: dict[str, Any] = {} if guidance is None else {"guidance_scale": guidance}
    if size is not None:
        found |= dict(zip(("height", "width"), size, strict=True))
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--call: {text!r}; NAME=VALUE, as true_cfg_scale=4, needed")
        if name in _SET:
            raise InputError(f"--call: {name} is set by the search; leave it out")
        if name in found:
            raise InputError(f"--call: {name} is given twice; once needed")
        found[name] = value if "prompt" in name else _value(value)
    return found


def _value(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if found is None or isinstance(found, bool | int | float | str | list | dict):
            return found
    return text


def conditions(prompts: Sequence[str], shared: Mapping[str, Any], dtype: str) -> str:
    """What else than weights and noise the costs depend on, as a hash; of an image its bytes."""
    content = json.dumps([list(prompts), dict(shared), dtype], sort_keys=True)
    digest = hashlib.sha256(content.encode())
    for _, path in sorted(_images(shared).items()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _images(shared: Mapping[str, Any]) -> dict[str, Path]:
    """The arguments that name a file with an image. InputError where there is none."""
    found = {
        name: Path(value)
        for name, value in shared.items()
        if name.endswith("image") and isinstance(value, str)
    }
    for name, path in found.items():
        if not path.is_file():
            raise InputError(f"--call: {name}={path}: no such file; an image needed")
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"--call: {name}={path}: no image ({one_line(error)})") from error
    return found


def pipeline_arguments(pipeline: Any, shared: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with images in the place of their files. InputError for what the pipeline's
    call does not take."""
    known = inspect.signature(type(pipeline).__call__).parameters
    any_name = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for name in shared:
        if name not in known and not any_name:
            option = "--guidance: " if name == "guidance_scale" else "--call: "
            like = [k for k in known if set(k.split("_")) & set(name.split("_"))]
            takes = f"; it takes {', '.join(like)}" if like else ""
            raise InputError(
                f"{option}{type(pipeline).__name__} takes no {name}{takes}; an argument of its call"
                " needed"
            )
    from diffusers.utils import load_image

    images = {name: load_image(str(path)) for name, path in _images(shared).items()}
    return {**shared, **images}


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
