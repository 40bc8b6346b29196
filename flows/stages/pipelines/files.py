"""The files that params.yaml names beside a diffusers pipeline. Imports no torch."""

from pathlib import Path

from boss_core.errors import InputError

SUFFIXES = (".txt", ".jsonl")


def prompts_file(path: Path) -> Path:
    """The file of prompts: this one, or the one in a folder."""
    if not path.is_dir():
        return path
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if len(found) != 1:
        raise InputError(
            f"params.yaml: teacher.pipeline.prompts: {path}: {len(found)} files of"
            f" {' or '.join(SUFFIXES)} in it; exactly one, with a prompt a line, needed"
        )
    return found[0]


def adapters(folder: Path) -> list[Path]:
    """The user's adapters that are part of the teacher, by name."""
    if not folder.is_dir():
        raise InputError(
            f"params.yaml: teacher.pipeline.lora: {folder}: no folder; one of .safetensors files,"
            " or of none, needed"
        )
    return sorted(folder.glob("*.safetensors"))
