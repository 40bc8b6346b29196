"""``python -m flows.workspace.dvc_process ...``: DVC's command line, which writes dvc.lock quickly
and whole.

After each stage DVC reads all of it with a parser that keeps comments, of which it has none, and
writes all of it anew, in place: a budget more makes every stage slower, and what reads it meanwhile
finds half a file. Here the lines of the stage that ended are replaced, in the same words."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boss_core.io.files import write_bytes

_STAGES = "stages:\n"
# Of each stage, whose own lines are further to the right.
_NAME = re.compile(r"^  (?=[^ \n])", re.MULTILINE)


def main() -> int:
    """Run DVC with the arguments of this process; its exit code."""
    import dvc.dvcfile
    from dvc.cli import main as run

    whole = dvc.dvcfile.modify_yaml

    @contextmanager
    def modify(path: "str | os.PathLike[str]", fs: Any = None) -> Iterator[Any]:
        with (modified_lock if Path(path).name == "dvc.lock" else whole)(path, fs=fs) as data:
            yield data

    dvc.dvcfile.modify_yaml = modify
    return int(run(sys.argv[1:]))


@contextmanager
def modified_lock(path: "str | os.PathLike[str]", fs: Any = None) -> Iterator[Any]:
    """The content of dvc.lock, to be changed in the block; stages that are others then are written,
    by DVC's own words, in place of what they were, new ones at the end."""
    from dvc.utils.serialize import dumps_yaml, parse_yaml

    file = Path(path)
    text = file.read_text("utf-8") if file.exists() else ""
    data = parse_yaml(text, path)
    before = {key: dict(value) if key == "stages" else value for key, value in data.items()}
    yield data
    new = spliced(text, before, data)
    write_bytes(file.resolve(), (dumps_yaml(data) if new is None else new).encode())


def spliced(text: str, before: dict[str, Any], data: dict[str, Any]) -> str | None:
    """The text of dvc.lock with the stages that changed; None where more than these did, or where
    its lines are not as DVC writes them."""
    from dvc.utils.serialize import dumps_yaml

    old, new = before.get("stages", {}), data.get("stages", {})
    rest = {key: value for key, value in data.items() if key != "stages"}
    if rest != {key: value for key, value in before.items() if key != "stages"}:
        return None
    head, found, body = text.partition(_STAGES)
    blocks = _NAME.split(body)
    # Blocks in the order of the names; before the first there is nothing.
    if not found or blocks[0] or len(blocks) != 1 + len(old) or not _ends_with_stages(head, body):
        return None
    lines = dict(zip(old, blocks[1:], strict=True))
    if [*new][: len(old)] != [*old]:
        return None
    for name, entry in new.items():
        if entry is not old.get(name):
            lines[name] = dumps_yaml({"stages": {name: entry}}).removeprefix(f"{_STAGES}  ")
    return head + _STAGES + "".join(f"  {block}" for block in lines.values())


def _ends_with_stages(head: str, body: str) -> bool:
    """Whether the stages are a block of the file, and the last one."""
    return head.endswith("\n") and not re.search(r"^\S", body, re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main())
