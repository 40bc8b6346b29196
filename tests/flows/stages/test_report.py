"""What the page shows of the parameters."""

from pathlib import Path

import pytest

from flows.stages.report import shown_parameters


def test_a_password_in_the_parameters_is_not_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "tracking:\n  uri: postgresql://me:{}@host/db # {}\nseed: 3\n"
    Path("params.yaml").write_text(text.format("secret", "one database"))
    assert shown_parameters() == text.format("***", "one database")
