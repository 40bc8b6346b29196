"""A full disk: what DVC cannot store is an error, and what is a convenience is a line."""

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from flows.errors import reported
from flows.workspace.integrity import COPIES, absent, not_stored, recorded, unstored
from tests.helpers.disks import OWN_MOUNTS, small_disk
from tests.helpers.project import Project


@pytest.fixture
def small_cache(finished: Project, tmp_path: Path) -> tuple[Project, str]:
    """The project with an empty cache, and the command that mounts a disk of 100 kB for it."""
    cache = tmp_path / "cache"
    mount = small_disk(cache, "100k")
    project = finished.copy(tmp_path / "project")
    (project.folder / "dvc.lock").unlink()
    project.run("dvc", "cache", "dir", "--local", str(cache))
    return project, mount


def test_what_dvc_could_not_store_is_an_error(small_cache: tuple[Project, str]) -> None:
    project, mount = small_cache
    larger = mount.replace("-o size=100k", "-o remount,size=50m")
    script = f"""{mount}
        boss repro >&2; echo boss: $?
        dvc repro >&2; echo dvc: $?
        {larger}; dvc commit --quiet --force prepare; dvc status prepare"""
    done = project.run(*OWN_MOUNTS, script)
    # DVC alone ends as if all were well; the stage that would read it tells.
    assert done.stdout.split("\n")[:2] == ["boss: 2", "dvc: 255"]
    cache = project.folder.parent / "cache"
    said = (
        f"error: {cache}: DVC could not store data in its cache (0 bytes free on its disk); free"
        " some, `dvc commit --force prepare` keeps what was made, then run again"
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in errors
    assert not [line for line in errors if line != said and "error: the run stopped" not in line]
    assert "up to date" in done.stdout


@pytest.mark.slow
def test_the_flow_too(small_cache: tuple[Project, str], prefect_server) -> None:
    project, mount = small_cache
    script = f"{mount}; exec boss run --target prepare"
    done = project.run(*OWN_MOUNTS, script, code=2, env=prefect_server)
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: prepare: {project.folder.parent / 'cache'}: DVC could not")


def test_what_is_not_in_the_cache(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    assert unstored(project.folder, before=()) == {}
    (report,) = [r for r in recorded(project.folder) if r.path.name == "report.html"]
    report.cached.unlink()
    assert unstored(project.folder, before=()) == {"report": [report.path]}
    assert unstored(project.folder, "report", before=()) == {"report": [report.path]}
    assert unstored(project.folder, "prepare", before=()) == {}
    # Of a run that failed before: DVC was not asked to store it.
    assert unstored(project.folder, before=None) == {}
    (report.cached.parent / ".x.tmp").touch()  # as DVC leaves it where it could not
    assert unstored(project.folder, before=None) == {"report": [report.path]}
    # What was begun before this run, or before the output was made, a kill has left.
    left = report.cached.parent / ".x.tmp"
    begun = left.stat().st_mtime
    assert unstored(project.folder, before=None, since=begun + 1) == {}
    assert unstored(project.folder, before=None, since=begun) == {"report": [report.path]}
    os.utime(left, (begun, (project.folder / report.path).stat().st_mtime - 1))
    assert unstored(project.folder, before=None) == {}
    # A cache that was cleared is no disk that was full.
    (report.cached.parent / ".x.tmp").unlink()
    assert unstored(project.folder, before=absent(project.folder)) == {}
    # Recorded, but of a budget that is gone.
    (project.folder / report.path).unlink()
    assert unstored(project.folder, before=()) == {}


def test_a_copy_has_nothing_to_commit(tmp_path: Path) -> None:
    copy = tmp_path / COPIES / "lr=1"
    copy.mkdir(parents=True)
    left = {"prepare": [Path("data")]}
    assert not_stored(tmp_path, left).endswith(
        "free some, `dvc commit --force prepare` keeps what was made, then run again"
    )
    said = not_stored(copy, left)
    assert said.endswith("free some and run again")
    assert "commit" not in said


def test_notes_that_cannot_be_written_are_a_line(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    full = [project.folder / "results/usage", tmp_path / "tracking"]
    mounts = [small_disk(folder, "4k") for folder in full]
    links = project.folder / ".dvc/tmp/mlflow-runs.json"
    links.unlink()
    links.mkdir()  # which no file can replace
    fill = [f"head -c 4096 /dev/zero > {folder}/full || true" for folder in full]
    evaluate = "python -m flows.stages.evaluate 3"
    tracked = f"sed -i 's|  uri:.*|  uri: sqlite:///{full[1]}/mlflow.db|' params.yaml; {evaluate}"
    (project.folder / "metrics/3.json").unlink()
    done = project.run(*OWN_MOUNTS, "; ".join(["set -e", *mounts, *fill, evaluate, tracked]))
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    usage = "warning: results/usage/evaluate-3.json: No space left on device; what evaluate-3 took"
    link = "warning: .dvc/tmp/mlflow-runs.json: Is a directory; the flow's page lacks a link"
    assert warnings[0].startswith(usage)
    assert warnings[1] == link
    assert warnings[2].startswith(usage)
    assert warnings[3].startswith("warning: ")
    assert f"{full[1]}/mlflow.db" in warnings[3]
    assert len(warnings) == 4
    assert "Traceback" not in done.stdout + done.stderr
    assert project.outputs() == finished.outputs()


def test_a_record_that_cannot_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    record = tmp_path / "disk" / "3.json"
    mount = small_disk(record.parent, "4k")
    script = f"""{mount}; cd {record.parent}; echo '{{"nfe": 3}}' > 3.json
        python -c "
from pathlib import Path
from flows.errors import reported
from flows.records.json_files import write_json
with reported():
    write_json(Path('3.json'), dict(many=list(range(9999))))
"; echo $?; cat 3.json; ls -A"""
    done = Project(tmp_path).run(*OWN_MOUNTS, script)
    assert done.stdout.split("\n") == ["2", '{"nfe": 3}', "3.json", ""]
    assert done.stderr == "error: 3.json: no space left on the disk; free some and run again\n"


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        OSError("9999 requested and 0 written"),  # of numpy
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    ],
)
def test_every_library_has_its_own_words_for_it(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end, reported():
        raise error
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: output: no space left on the disk; free some and run again\n"
    )
