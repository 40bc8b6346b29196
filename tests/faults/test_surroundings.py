"""What a machine does around a run: a clock that jumps, a folder of any name, moved, and shared."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.helpers.mlflow_runs import runs
from tests.helpers.project import Project, environment
from tests.helpers.undisturbed import assert_as_undisturbed

# Python imports it wherever it starts: what the clock says is that of the kernel and an offset.
CLOCK = """
import os, time
_now = time.time

def jumped():
    with open(os.environ["BOSS_TEST_CLOCK"]) as file:
        return _now() + float(file.read() or 0)

time.time = jumped
time.time_ns = lambda: int(1e9 * jumped())
"""
SECONDS = (-3 * 86400, 400 * 86400, -400 * 86400, 7200, -1)


@pytest.mark.slow
@pytest.mark.long
def test_a_clock_that_jumps(finished: Project, tmp_path: Path) -> None:
    """Before each stage, by days and years, while the files keep the kernel's times."""
    project = Project.create(tmp_path / "project")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CLOCK)
    clock = tmp_path / "clock"
    clock.write_text("0")
    path = f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {"PYTHONPATH": path, "BOSS_TEST_CLOCK": str(clock)}
    shown, jumps = [], 0
    with project.start("boss", "repro", env=env) as run:
        assert run.stdout is not None
        for line in run.stdout:
            shown.append(line)
            if "Running stage" in line:
                new = clock.with_suffix(".new")
                new.write_text(str(SECONDS[jumps % len(SECONDS)]))
                new.replace(clock)
                jumps += 1
    assert run.returncode == 0, "".join(shown)
    assert jumps > 10
    assert_as_undisturbed(project, finished)
    assert all(each.info.start_time <= each.info.end_time for each in runs(project))
    far = [each for each in runs(project) if abs(each.info.end_time / 1000 - time.time()) > 86400]
    assert far  # the clock did jump


@pytest.mark.long
def test_a_folder_of_any_name_that_was_moved(finished: Project, tmp_path: Path) -> None:
    """MLflow stores absolute addresses, DVC the times and numbers of files."""
    first = finished.copy(tmp_path / "before")
    folder = tmp_path / "Über alles (1)'s \u6d41 & more"
    project = Project(first.folder.rename(folder))
    assert_as_undisturbed(project, finished)
    project.set({"evaluate.samples": 40})
    assert "Running stage 'evaluate@1'" in project.run("boss", "repro").stdout
    before = sorted(each.info.run_id for each in runs(project))
    assert "K=1: in MLflow" in project.run("boss", "track").stdout
    assert sorted(each.info.run_id for each in runs(project)) == before
    for each in runs(project):
        place = Path(each.info.artifact_uri.removeprefix("file://"))
        assert "before" not in place.parts


@pytest.fixture
def shared(finished: Project) -> Iterator[Project]:
    """A project that the users of a group share, where all of them find it."""
    folder = Path(tempfile.mkdtemp(prefix="boss-shared-"))
    folder.chmod(0o755)
    project = finished.copy(folder / "project")
    project.run("git", "config", "core.sharedRepository", "group")
    project.run("dvc", "config", "--local", "cache.shared", "group")
    subprocess.run(["chgrp", "-R", str(GROUP), project.folder], check=True)
    subprocess.run(["chmod", "-R", "g+rwX", project.folder], check=True)
    subprocess.run(["find", project.folder, "-type", "d", "-exec", "chmod", "g+s", "{}", "+"])
    yield project
    shutil.rmtree(folder)


GROUP, USERS = 12000, (12001, 12002)
# As another user. Where the interpreter lies in a folder of root's, this process alone sees it in
# one that is open.
AS_USER = """
set -e
user=$1 base=$2 closed=$3 keep=$4; shift 4
if [ -n "$closed" ]; then
    mount --bind "$base" "$keep"
    mount -t tmpfs -o mode=755 none "$closed"
    mkdir -p "$base"
    mount --bind "$keep" "$base"
fi
umask 002
exec setpriv --reuid "$user" --regid 12000 --clear-groups -- "$@"
"""


def start_as(user: int, project: Project, *command: str) -> "subprocess.Popen[str]":
    home, keep = (project.folder.parent / f"{name}-{user}" for name in ("home", "keep"))
    if not home.exists():
        home.mkdir()
        keep.mkdir()
        (home / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
        for path in (home, home / ".gitconfig"):
            os.chown(path, user, GROUP)
    base = Path(sys.base_prefix)
    closed = [str(each) for each in base.parents if not each.stat().st_mode & 0o001]
    return subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", AS_USER, "sh", str(user), str(base),
         closed[-1] if closed else "", str(keep), *command],
        cwd=project.folder, env=environment({"HOME": str(home), "TMPDIR": str(home)}),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root runs commands as other users")
def test_two_users_at_once(shared: Project, finished: Project) -> None:
    """Who comes second is told, and may go on afterwards with what the first has made."""
    first, second = USERS
    shared.set({"finetune.training.iterations": 13})
    holder = start_as(first, shared, "boss", "repro")
    assert holder.stdout is not None
    shown = []
    for line in holder.stdout:
        shown.append(line)
        if "Running stage" in line:
            break
    refused = start_as(second, shared, "boss", "repro")
    said = refused.communicate(timeout=120)[0]
    assert refused.returncode == 2, said
    assert "another run is at work in this folder" in said
    shown.append(holder.communicate(timeout=300)[0])
    assert holder.returncode == 0, "".join(shown)
    for user, command in ((second, ["boss", "repro"]), (second, ["boss", "table"])):
        other = start_as(user, shared, *command)
        said = other.communicate(timeout=120)[0]
        assert other.returncode == 0, said
        assert "Running stage" not in said
    shared.set({"finetune.training.iterations": yaml.safe_load(
        (finished.folder / "params.yaml").read_text())["finetune"]["training"]["iterations"]
    })  # fmt: skip
    back = start_as(second, shared, "boss", "repro")
    said = back.communicate(timeout=300)[0]
    assert back.returncode == 0, said
    assert "finetune@1' is cached - skipping run" in said
    assert shared.outputs() == finished.outputs()
