"""``boss export``."""

import sys
from pathlib import Path

import typer

TARGETS = ("diffusers", "diffusers-fixed", "comfyui", "comfyui-node", "flow_matching", "json")


def export(
    schedule: Path = typer.Argument(help="A schedule's JSON, or the folder of a student."),
    to: str = typer.Option(..., help=f"{', '.join(TARGETS)}."),
    out: Path | None = typer.Option(None, help="File to write; printed when left out."),
    scheduler: Path | None = typer.Option(
        None,
        help="The folder of a diffusers pipeline or scheduler: say what it would do to the steps.",
    ),
    mu: float | None = typer.Option(None, help="With --scheduler: mu of dynamic shifting."),
) -> None:
    """Write a schedule for the sampler of another tool: a snippet to paste, or JSON."""
    from boss_core.errors import InputError
    from flows.search.export import export_notes, export_schedule, scheduler_lines

    if mu is not None and scheduler is None:
        raise InputError("--mu: only goes with --scheduler; add that, or leave --mu out")
    if out is not None:
        from flows.search.options import check_place  # imports torch, which printing does not need

        check_place("--out", out, folder=False)
    text = export_schedule(schedule, to)
    for line in export_notes(schedule, to):
        print(line, file=sys.stderr)
    if scheduler is not None:
        for line in scheduler_lines(schedule, scheduler, mu):
            print(line, file=sys.stderr)
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")
    else:
        from boss_core.io.files import write_bytes

        write_bytes(out, text.encode())
