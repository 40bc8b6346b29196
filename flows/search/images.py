"""Images among the arguments of a pipeline's call, which are given as paths of files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from boss_core.errors import InputError

# image, last_image, control_image, images, ...: a path, or a list of paths.
_NAMED = re.compile(r"(.*_)?images?")


def image_files(arguments: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The arguments that name files with images, and these files."""
    found = {}
    for name, value in arguments.items():
        paths = value if isinstance(value, list) else [value]
        if _NAMED.fullmatch(name) and paths and all(isinstance(path, str) for path in paths):
            found[name] = [Path(path) for path in paths]
    return found


def check_images(arguments: Mapping[str, Any], where: str) -> None:
    """InputError where a file that is named is not there or holds no image."""
    for name, paths in image_files(arguments).items():
        for path in paths:
            if not path.is_file():
                raise InputError(f"{where}: {name}={path}: no such file; an image needed")
            try:
                with Image.open(path) as image:
                    image.load()
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                reason = " ".join(str(error).split())
                raise InputError(f"{where}: {name}={path}: no image ({reason})") from error


def load_images(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with images, in RGB, in the place of their files."""
    from diffusers.utils import load_image

    found = dict(arguments)
    for name, paths in image_files(arguments).items():
        images = [load_image(str(path)) for path in paths]
        found[name] = images if isinstance(arguments[name], list) else images[0]
    return found
