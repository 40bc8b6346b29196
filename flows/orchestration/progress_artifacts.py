"""How far a long stage is, as a bar on its page in Prefect."""

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact

LONG = 60.0  # seconds of work that are worth a bar
# As `flows.progress` writes into a log.
_LINE = re.compile(r"(?P<label>.+): (?P<done>[\d,]+)/(?P<total>[\d,]+) .*, (?P<left>\d+) s left")


@contextmanager
def shown_progress(stage: str, log: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """``log``, to be called with each line of a stage, which also moves a progress artifact once a
    part of the stage is to take longer than `LONG`. Of the task that it is called in."""
    artifact: UUID | None = None

    def read(line: str) -> None:
        nonlocal artifact
        log(line)
        found = _LINE.fullmatch(line)
        if found is None:
            return
        done, total = (int(found[name].replace(",", "")) for name in ("done", "total"))
        if not 0 < done <= total:
            return
        left = float(found["left"])
        # What is left, over the share of it, is how long all of it takes.
        if artifact is None and left < LONG * (total - done) / total:
            return
        percent, about = 100.0 * done / total, f"{found['label']}: {left:g} s left"
        # A stage of hours does not end because the server does not answer for a moment.
        with contextlib.suppress(httpx.HTTPError):
            if artifact is None:
                key = re.sub(r"[^a-z0-9]+", "-", f"boss-{stage}".lower())
                created = create_progress_artifact(percent, key=key, description=about)
                artifact = created if isinstance(created, UUID) else None
            else:
                update_progress_artifact(artifact, percent, description=about)

    yield read
    if artifact is not None:
        with contextlib.suppress(httpx.HTTPError):
            update_progress_artifact(artifact, 100.0, description=f"{stage}: done")
