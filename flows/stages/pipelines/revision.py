"""Which revision a pipeline from the hub has: DVC sees no name change what it stands for, so that
`check` writes it down. Imports no torch."""

from pathlib import Path

from boss_core.errors import InputError
from flows import paths
from flows.config import Params
from flows.records.json_files import Json, read_json

HUB = "params.yaml: teacher.pipeline.hub"


def revision_now(params: Params) -> Json:
    """The name on the hub that the teacher is, and its newest commit; without one, nothing."""
    hub = params.teacher.pipeline.hub if params.teacher.source == "diffusers" else None
    if hub is None:
        return {"hub": None, "revision": None}
    from flows.search.hub import on_hub

    return {"hub": hub, "revision": on_hub(hub, HUB).revision}


def read_revision(params: Params, root: Path = Path()) -> str | None:
    """The commit that `check` found; None for a folder. InputError where it looked at another."""
    found = read_json(root / paths.HUB)
    if found.get("hub") != params.teacher.pipeline.hub:
        raise InputError(
            f"{paths.HUB}: of {found.get('hub')}, not of teacher.pipeline.hub,"
            f" {params.teacher.pipeline.hub}; `dvc repro check` writes it"
        )
    revision: str | None = found.get("revision")
    return revision
