"""``boss merge``."""

from pathlib import Path

import typer


def merge(
    adapter: Path = typer.Argument(help="An adapter's folder, as models/student/6/boss_lora."),
    teacher: Path = typer.Option(..., help="The folder of the network that it was trained on."),
    out: Path = typer.Option(..., help="A new folder: a checkpoint of the whole student."),
) -> None:
    """Merge an adapter into its teacher's weights: a student like any other, with its steps."""
    from boss_core.checkpoints.folder import save_checkpoint
    from boss_core.checkpoints.lora import load_adapter
    from boss_core.errors import InputError

    if out.exists():
        raise InputError(f"--out: {out} is there already; a new folder needed")
    network, card = load_adapter(adapter, teacher)
    save_checkpoint(out, network, teacher_hash=card.teacher_hash, schedule=card.schedule)
    print(f"{out}: the teacher {card.teacher_hash[:12]} with the adapter {adapter}")
