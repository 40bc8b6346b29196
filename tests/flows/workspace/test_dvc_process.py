"""dvc.lock as DVC itself would write it, but quickly and whole."""

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml, modify_yaml, parse_yaml

from flows.workspace.dvc_lock import read_lock
from flows.workspace.dvc_process import modified_lock, spliced
from tests.helpers.project import Project

ODD = {
    "cmd": "python -m flows.stages.finetune " + "and a line that is folded " * 6,
    "deps": [{"path": "a folder/ü: # x", "hash": "md5", "md5": "0" * 32, "size": 3}],
    "params": {
        "params.yaml": {
            "few": 1e-05, "many": 2.5e20, "none": None, "yes": True, "word": "yes", "empty": [],
            "block": {"inside": [1, [2, 3]], "text": "two\nlines\n", "date": "2026-11-30"},
        }
    },
    "outs": [{"path": "b", "hash": "md5", "md5": "1" * 32, "size": 3}],
}  # fmt: skip


def entry(number: int) -> dict[str, Any]:
    found = copy.deepcopy(ODD)
    found["outs"][0]["path"] = f"results/{number}"
    return found


def lock(stages: int) -> str:
    return dumps_yaml(
        {"schema": "2.0", "stages": {f"finetune@{k}": entry(k) for k in range(stages)}}
    )


@pytest.mark.parametrize("change", ["same", "first", "last", "new", "both"])
def test_the_same_bytes_as_dvc_writes(tmp_path: Path, change: str) -> None:
    altered = {"cmd": "true", "outs": entry(7)["outs"]}
    changes = {
        "same": {"finetune@1": entry(1)},
        "first": {"finetune@0": altered},
        "last": {"finetune@3": altered},
        "new": {"report": altered},
        "both": {"evaluate@1": entry(9), "finetune@2": altered},
    }[change]
    texts = []
    for name, modify in (("ours", modified_lock), ("theirs", modify_yaml)):
        path = tmp_path / name
        path.write_text(lock(4))
        with modify(path) as data:
            data["stages"].update(copy.deepcopy(changes))
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]
    assert (texts[0] == lock(4).encode()) is (change == "same")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "schema: '2.0'\n",
        "schema: '2.0'\nstages: {a: {cmd: x}}\n",
        "schema: '2.0'\nstages:\n    a:\n        cmd: x\n",
        "stages:\n  a:\n    cmd: x\nschema: '2.0'\n",
        "schema: '2.0'\ndatasets:\n- name: x\nstages:\n  a:\n    cmd: x\ndatasets2: 1\n",
    ],
)
def test_a_file_of_another_form_is_written_as_a_whole(tmp_path: Path, text: str) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text(text)
    with modified_lock(path) as data:
        before = {**data, "stages": {**data.get("stages", {})}}
        data.setdefault("stages", {})["b"] = {"cmd": "y"}
        data["schema"] = "2.0"
        expected = copy.deepcopy(data)
    assert spliced(text, before, data) is None
    assert parse_yaml(path.read_text(), path) == expected


def test_a_stage_that_is_gone_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text(lock(4))
    with modified_lock(path) as data:
        del data["stages"]["finetune@3"]
    assert path.read_text() == lock(3)


def test_who_reads_meanwhile_finds_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text(lock(60))
    done = threading.Event()
    lengths = set()

    def read() -> None:
        while not done.is_set():
            lengths.add(len(read_lock(path.read_bytes(), path)["stages"]))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(60, 90):
            with modified_lock(path) as data:
                data["stages"][f"finetune@{number}"] = entry(number)
    finally:
        done.set()
        reader.join()
    assert lengths <= {*range(60, 91)}
    assert path.read_text() == lock(90)


@pytest.mark.slow
def test_dvc_is_as_it_was(finished: Project, tmp_path: Path) -> None:
    """A stage that runs anew leaves the bytes that it left before, and an error its own code."""
    project = finished.copy(tmp_path / "project")
    quick = ("python", "-m", "flows.workspace.dvc_process")
    before = (project.folder / "dvc.lock").read_bytes()
    shown = project.run(*quick, "repro", "--single-item", "--force", "check").stdout
    assert "Running stage 'check'" in shown
    assert (project.folder / "dvc.lock").read_bytes() == before
    assert "up to date" in project.run(*quick, "repro").stdout
    failed = project.run(*quick, "repro", "nothing", code=255).stderr
    assert "'nothing' does not exist" in failed
