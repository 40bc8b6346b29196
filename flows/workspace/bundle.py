"""A project as it stands, uncommitted edits included, as one git revision in a file: what another
machine works in. Neither the index nor any reference of the user's repository is touched."""

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from boss_core.errors import InputError
from flows.workspace.process import StageError

# Stays on its machine: credentials, DVC's working files and what it has stored.
_STAYS = (".dvc/config.local", ".dvc/tmp", ".dvc/cache")
# Over all of a project's own: every file's bytes as they are, whatever git would make of them.
_AS_IT_IS = "* -filter -text -ident -eol -working-tree-encoding -export-subst\n"
_BRANCH = "refs/heads/boss"
# Of the revision, so that the same files make the same one on every machine.
_NOBODY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in {"NAME": "boss", "EMAIL": "boss@localhost", "DATE": "@0 +0000"}.items()
}


def bundle(root: Path) -> bytes:
    """What git tracks or would track in the folder ``root``, as a bundle of a single commit.

    InputError where there is no git, and for a repository inside the project, which git does not
    take in."""
    with tempfile.TemporaryDirectory(prefix="boss-bundle-") as name:
        aside = Path(name)
        _git(aside, "init", "--quiet", "--bare", str(aside / "git"))
        _borrow(root, aside / "git")
        (aside / "git" / "info" / "attributes").write_text(_AS_IT_IS)
        there = {"GIT_DIR": str(aside / "git"), "GIT_WORK_TREE": str(root.resolve())}
        _git(root, "add", "--all", env=there)
        # What is tracked though it is ignored, as what somebody has forced.
        if forced := [name for name in _tracked(root) if not _stays(name)]:
            listed = "\0".join(forced)
            names = ["--pathspec-from-file=-", "--pathspec-file-nul"]
            _git(root, "--literal-pathspecs", "add", "--force", *names, env=there, given=listed)
        _check_no_repositories(_git(root, "ls-files", "--stage", "-z", env=there))
        tree = _git(root, "write-tree", env=there).strip()
        commit = _git(root, "commit-tree", tree, "-m", "as it stands", env=there | _NOBODY).strip()
        _git(root, "update-ref", _BRANCH, commit, env=there)
        file = aside / "bundle"
        _git(root, "bundle", "create", "--quiet", str(file), _BRANCH, env=there)
        return file.read_bytes()


def unbundle(content: bytes, folder: Path) -> None:
    """A clone in the new folder ``folder``, its files checked out."""
    folder.mkdir(parents=True)
    file = folder.with_name(f"{folder.name}.bundle")
    try:
        file.write_bytes(content)
        _git(folder, "init", "--quiet")
        (folder / ".git" / "info").mkdir(exist_ok=True)
        (folder / ".git" / "info" / "attributes").write_text(_AS_IT_IS)
        _git(folder, "fetch", "--quiet", str(file), _BRANCH)
        _git(folder, "checkout", "--quiet", "--detach", "FETCH_HEAD")
    finally:
        file.unlink(missing_ok=True)


def left_behind(root: Path, path: Path) -> list[str]:
    """The files at a path of the project, or below it, that git ignores, so that no bundle has
    them; without those of ``dvc add``."""
    listed = _git(
        root, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--", str(path)
    )
    return [name for name in listed.split("\0") if name and not _of_dvc(root, Path(name))]


def _of_dvc(root: Path, path: Path) -> bool:
    places = (path, *path.parents)[: len(path.parts)]
    return any((root / place.with_name(f"{place.name}.dvc")).is_file() for place in places)


def _tracked(root: Path) -> list[str]:
    """The files that the project's own repository tracks and that are there."""
    listed = _run(root, "ls-files", "-z", "--cached").stdout  # nothing where there is none
    return [name for name in listed.split("\0") if name and os.path.lexists(root / name)]


def _stays(name: str) -> bool:
    return any(name == path or name.startswith(f"{path}/") for path in _STAYS)


def _borrow(root: Path, aside: Path) -> None:
    """Let a repository find what that of the project has, which so is not written once more, and
    ignore what it ignores, and what stays on this machine."""
    ignored = "".join(f"/{path}\n" for path in _STAYS)
    found = _run(root, "rev-parse", "--git-common-dir")
    if found.returncode == 0:  # else a folder that git knows nothing of, which does as well
        own = (root / found.stdout.strip()).resolve()
        (aside / "objects" / "info").mkdir(exist_ok=True)
        (aside / "objects" / "info" / "alternates").write_text(f"{own / 'objects'}\n")
        exclude = own / "info" / "exclude"
        if exclude.is_file():
            ignored = f"{exclude.read_text(errors='surrogateescape')}\n{ignored}"
    (aside / "info" / "exclude").write_text(ignored, errors="surrogateescape")


def _check_no_repositories(listed: str) -> None:
    for entry in filter(None, listed.split("\0")):
        about, _, path = entry.partition("\t")
        if about.startswith("160000"):
            raise InputError(
                f"{path}: a git repository inside the project, whose files no other machine would"
                " have; its files without their .git, or an installed package, needed"
            )


def _git(
    root: Path, *arguments: str, env: Mapping[str, str] | None = None, given: str | None = None
) -> str:
    done = _run(root, *arguments, env=env, given=given)
    if done.returncode:
        raise StageError(f"git {arguments[0]}: {' '.join(done.stderr.split())}")
    return done.stdout


def _run(
    root: Path, *arguments: str, env: Mapping[str, str] | None = None, given: str | None = None
) -> "subprocess.CompletedProcess[str]":
    # As inside a git hook, where these would lead to the user's repository.
    own = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=root,
            env=own | {"LC_ALL": "C"} | dict(env or {}),
            input=given,
            capture_output=True,
            text=True,
            errors="surrogateescape",
        )
    except FileNotFoundError as error:
        raise InputError("git: not installed; it needed, to send the project elsewhere") from error
