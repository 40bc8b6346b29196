"""Values that YAML 1.1 and YAML 1.2 read differently are refused: by PyYAML and by DVC's reader."""

from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import parse_yaml

from boss_core.errors import InputError
from flows.strict_yaml import read_mapping


@pytest.mark.parametrize(
    "text",
    ["1", "1.5", "010", "0o10", "0x10", "1_200", "1e-5", "1.0e-5", "1e5", "+1", "no", "yes", "true",
     "True", "on", "~", "null", "1:30", "'010'", "'a: b'", "[1, 010]", "{b: {c: off}}", "{b: 1}"],
)  # fmt: skip
def test_what_dvc_reads_otherwise_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"a: {text}\n")
    here, of_dvc = yaml.safe_load(path.read_text()), parse_yaml(path.read_text(), path)
    if repr(here) == repr(of_dvc):
        assert read_mapping(path) == here
    else:
        with pytest.raises(InputError, match="as DVC reads it"):
            read_mapping(path)


def test_what_dvc_cannot_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: 1\na: 2\n")  # PyYAML takes the second
    with pytest.raises(InputError, match="not YAML to DVC"):
        read_mapping(path)
