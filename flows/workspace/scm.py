"""Git around a project: DVC works without it, experiments do not."""

import configparser
import io
import os
import subprocess
import sys
from pathlib import Path

from boss_core.errors import InputError
from boss_core.io.files import write_bytes

LOCAL = Path(".dvc/config.local")


def settle_git(root: Path) -> None:
    """Let DVC work in a folder that is no git repository, as a downloaded archive is: DVC's own
    setting for that, in the file for settings of one machine; taken back once there is one."""
    inside = _git(root, "rev-parse", "--git-dir")
    if not (root / ".dvc").is_dir():
        return  # DVC says what is wrong
    without = inside is None or "not a git repository" in inside.stderr
    path = root / LOCAL
    config = configparser.ConfigParser()
    try:
        config.read(path)
    except (configparser.Error, UnicodeDecodeError):
        return  # DVC says what is wrong
    known = config.get("core", "no_scm", fallback=None)
    if without == (known == "true"):
        return
    if without:
        if not config.has_section("core"):
            config.add_section("core")
        config.set("core", "no_scm", "true")
        print(
            f"{root.resolve()}: no git repository; the stages run all the same, experiments (--set)"
            " need one",
            file=sys.stderr,
        )
    else:
        config.remove_option("core", "no_scm")
    text = io.StringIO()
    config.write(text)
    write_bytes(path, text.getvalue().encode())


def require_commit(root: Path) -> None:
    """InputError with the true reason where an experiment has no commit to belong to."""
    found = _git(root, "rev-parse", "--verify", "HEAD")
    if found is not None and found.returncode == 0:
        return
    if found is None:
        why = "git is not installed; it is needed for experiments"
    elif "not a git repository" in found.stderr:
        why = "no git repository; one with a commit needed for experiments (`git init`)"
    elif "dubious ownership" in found.stderr:
        why = (
            "belongs to another user, so that git refuses it; `git config --global --add"
            f" safe.directory {root.resolve()}` needed"
        )
    else:
        why = "no git commit; a DVC experiment needs one to belong to"
    raise InputError(f"{root.resolve()}: {why}")


def _git(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str] | None":
    """A git command in a folder, in English; None where there is no git."""
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=root,
            env=os.environ | {"LC_ALL": "C"},
            capture_output=True,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        return None
