"""``boss verify``."""

from pathlib import Path

import typer


def verify(
    remove: bool = typer.Option(
        False, "--remove", help="Take away what is altered, so that the next run makes it anew."
    ),
) -> None:
    """Read every output and its copy in DVC's cache, and say which are not what their stage made:
    DVC itself goes by their size and time."""
    from flows.workspace.integrity import verify as verify_outputs

    if verify_outputs(Path(), remove=remove) and not remove:
        raise SystemExit(2)
