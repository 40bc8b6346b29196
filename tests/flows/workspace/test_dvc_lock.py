"""dvc.lock, read as a whole and stage by stage."""

from pathlib import Path

import pytest
import yaml

from boss_core.errors import InputError
from flows.workspace.dvc_lock import CutShortError, locked_stage, locked_stages

TEXT = """\
schema: '2.0'
stages:
  teacher:
    cmd: python -m flows.stages.teacher --of
      a folded line
    deps:
    - path: data
      md5: a0000000000000000000000000000001.dir
    outs:
    - path: models/teacher
      md5: a0000000000000000000000000000002.dir
  finetune@10:
    cmd: ten
    outs:
    - path: models/student/10
      md5: a0000000000000000000000000000003
  finetune@1:
    cmd: one
"""


def test_one_stage_is_as_in_the_whole(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(TEXT)
    whole = locked_stages(tmp_path)
    assert whole == yaml.safe_load(TEXT)["stages"]
    for name in whole:
        assert locked_stage(tmp_path, name) == whole[name]
    assert locked_stage(tmp_path, "finetune@2") == {}
    assert locked_stage(tmp_path / "nowhere", "teacher") == {}


def test_one_stage_of_a_file_in_another_form(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {a: {cmd: x}, b: {cmd: y}}\n")
    assert locked_stage(tmp_path, "b") == {"cmd": "y"}


def test_the_last_stage_may_be_cut_short(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(TEXT[: TEXT.index(": a0000000000000000000000000000003")])
    assert locked_stage(tmp_path, "teacher")["cmd"].endswith("a folded line")
    with pytest.raises(CutShortError):
        locked_stage(tmp_path, "finetune@10")


def test_a_conflict_of_gits_is_refused(tmp_path: Path) -> None:
    ours, theirs = "<<<<<<< HEAD\n    cmd: ten\n", "=======\n    cmd: 10\n>>>>>>> other\n"
    (tmp_path / "dvc.lock").write_text(TEXT.replace("    cmd: ten\n", ours + theirs))
    with pytest.raises(InputError, match="a conflict of git's in line 13"):
        locked_stage(tmp_path, "finetune@10")
