"""Addresses as anyone may see them."""

import pytest

from flows.records.passwords import without_password


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sqlite:////home/me@work/a:b.db", "sqlite:////home/me@work/a:b.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://me@host/path", "https://me@host/path"),
        ("at https://me:s@e/c@host:1/x: lost", "at https://me:***@host:1/x: lost"),
        (
            "postgresql://host/a?user=me&password=s&b=c",
            "postgresql://host/a?user=me&password=***&b=c",
        ),
    ],
)
def test_without_password(text: str, expected: str) -> None:
    assert without_password(text) == expected
