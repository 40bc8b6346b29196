"""What a diffusers pipeline raises, as one line for its user."""

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from boss_core.errors import InputError, lacks_memory
from flows.search.pipeline_call import one_line


@contextmanager
def pipeline_refusals(pipeline: Any, where: str = "--pipeline") -> Iterator[None]:
    """What a pipeline's call raises, as an InputError: its own words in a line. where: what the
    call comes from."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if lacks_memory(error):
            said = f" ({one_line(error):.200})" if str(error) else ""
            raise InputError(f"--batch-size: out of memory{said}; a smaller one needed") from error
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        call = inspect.unwrap(type(pipeline).__call__).__code__
        in_call = any(frame.f_code is call for frame in frames)
        ours = str(frames[-1].f_globals.get("__name__", "")).startswith(("boss_core", "flows"))
        if ours or not (in_call or isinstance(error, TypeError)):
            raise
        # diffusers goes without a library that is not installed until its name is needed.
        missing = type(error) is NameError and error.name
        raise InputError(
            f"{where}: {type(pipeline).__name__} refuses this call:"
            f" {type(error).__name__}: {one_line(error)}"
            f"{f'; pip install {missing} needed' if missing else ''}"
        ) from error
