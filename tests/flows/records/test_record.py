"""The two files of a record, and the one of earlier versions."""

import json
from pathlib import Path

import pytest

from boss_core.errors import InputError
from flows.records.record import read_record, write_record

ABOUT = {"nfe": 4, "samples": 70, "extractor": "classifier", "judges": {"second_classifier": "s"}}
MEASURED = {"boss": {"frechet_classifier": 0.5}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_numbers_in_one_file_and_words_in_the_other() -> None:
    write_record(4, ABOUT, MEASURED)
    assert json.loads(Path("metrics/4.json").read_text()) == {
        "nfe": 4, "samples": 70, "boss": {"frechet_classifier": 0.5},
    }  # fmt: skip
    assert json.loads(Path("samples/4/made_of.json").read_text()) == {
        "extractor": "classifier", "judges": {"second_classifier": "s"},
    }  # fmt: skip
    assert read_record(4) == read_record(4, Path.cwd()) == ABOUT | MEASURED


def test_a_record_of_an_earlier_version_is_in_one_file() -> None:
    Path("metrics").mkdir()
    Path("metrics/4.json").write_text(json.dumps(ABOUT | MEASURED))
    assert read_record(4) == ABOUT | MEASURED


def test_half_a_record_is_none() -> None:
    write_record(4, ABOUT, MEASURED)
    Path("samples/4/made_of.json").unlink()
    with pytest.raises(InputError, match=r"^samples/4/made_of\.json: no such file; `dvc repro`"):
        read_record(4)
