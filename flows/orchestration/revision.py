"""A teacher from the hub that has changed there since the last run."""

from pathlib import Path

from flows import paths
from flows.config import Params
from flows.records.json_files import read_json
from flows.stages.pipelines.revision import revision_now
from flows.workspace.process import dvc


def take_revision(root: Path, params: Params) -> None:
    """Have `check` write down what the teacher's name on the hub stands for, where that is another
    commit than it wrote, so that DVC sees it. Without a name, nothing."""
    now = revision_now(params)
    before = read_json(root / paths.HUB) if (root / paths.HUB).is_file() else {}
    if now["hub"] is None or before == now:
        return
    if before.get("hub") == now["hub"]:
        name, old = now["hub"].partition("@")[0], before["revision"]
        print(
            f"hub: {name} is at {now['revision']} now, the results here are of {old}: all that"
            f" follows is made again (teacher.pipeline.hub: {name}@{old} keeps them)",
            flush=True,
        )
    # Forced, as DVC's cache knows what it wrote for these parameters when the hub had another.
    dvc(root, "repro", "--single-item", "--force", "check")
