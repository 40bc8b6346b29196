"""params.yaml with generated mistakes: the values that are written, or one line that names the key
and the value; and what `boss check` makes of it."""

import copy
import datetime
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from flows.config import load_params
from tests.helpers.cases import cases, damaged, result_or_line
from tests.helpers.checkout import ROOT

TEXT = (ROOT / "params.yaml").read_text()
CONTENT = yaml.safe_load(TEXT)
# What a file may leave out.
DEFAULTS = {"weight_decay", "order", "registered_model"}


def leaves(block: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in block.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += leaves(value, (*above, key))
    return found


NAMES = leaves(CONTENT)
DEEP: Any = 1
for _ in range(200):
    DEEP = [DEEP]
ODD = st.sampled_from([
    None, True, False, -1, 0, 1, 2, 7, 64, 0.5, -0.5, 1e-300, 1e300, 2.0, math.nan, math.inf,
    -math.inf, 10**9, 10**9 + 1, 2**32, 2**63, 10**30, -(10**30), 10**4000, "", " ", "x", "auto",
    "1", "no", "é", "a\nb", "\x1b[31m", "\x85", "\u2028", "\U0001f600", "\0", "a\0b", "x" * 5000,
    "../..", "/", "/dev/null", "~", "a b", "none", "digits", "folder", "npz", "checkpoint",
    "diffusers", "inception", "multistep", "bfloat16", "512x512", [], [0], [1], [1, 1], [2, 4],
    [4, 8, 2], [None], ["boss"], ["boss", "boss"], [[1]], {}, {"a": 1}, {"a\nb": {}}, {1: 2},
    {None: 1}, {"training": {}}, b"\xff", datetime.date(2001, 1, 1), DEEP, [1] * 1000,
])  # fmt: skip
FREE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from(
    ["a\nb", "x", "", "training", "\u2028", "seed ", "é", 1, None, True, 1.5]
) | st.text(max_size=5)


@st.composite
def edited(draw: st.DrawFn) -> tuple[str, list[str]]:
    """The project's parameters with a few edits, and the names of these."""
    content, named = copy.deepcopy(CONTENT), []
    for _ in range(draw(st.integers(1, 3))):
        *blocks, last = draw(st.sampled_from(NAMES))
        block = content
        for name in blocks:
            block = block.get(name) if isinstance(block, dict) else None
        if not isinstance(block, dict):
            continue
        how = draw(st.sampled_from(["set", "set", "set", "out", "more"]))
        if how == "set":
            block[last] = copy.deepcopy(draw(ODD | FREE))
            named.append(last)
        elif how == "out":
            block.pop(last, None)
            named.append(last)
        else:
            key = draw(KEYS)
            block[key] = draw(ODD)
            # As it is shown: nothing of it begins a line.
            named.append("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(key)))
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=draw(st.booleans())), named


def same(found: Any, written: Any) -> bool:
    """Whether a value is what is written: of the same kind, but that 1 may be 1.0."""
    if isinstance(written, dict) and isinstance(found, dict):
        missing = found.keys() - written.keys()
        return missing <= DEFAULTS and all(
            key in found and same(found[key], written[key]) for key in written
        )
    if isinstance(written, list | tuple) and isinstance(found, list | tuple):
        return len(found) == len(written) and all(map(same, found, written))
    if isinstance(written, float) and written != written:
        return found != found
    if isinstance(found, float) and type(written) is int:
        return found == float(written)
    return type(found) is type(written) and found == written


def taken(path: Path, *named: str) -> bool:
    """Whether it loads: then as written; else a line that has the file, and one of the names."""
    params = result_or_line(lambda: load_params(path), *named)
    if params is None:
        result_or_line(lambda: load_params(path), f"{path}: ")
        return False
    assert same(params.model_dump(), yaml.safe_load(path.read_bytes()))
    return True


@cases(12)
@given(edit=edited())
def test_edited_parameters_are_those_written_or_one_line_with_the_key(
    tmp_path: Path, edit: tuple[str, list[str]]
) -> None:
    text, named = edit
    path = tmp_path / "params.yaml"
    path.write_text(text)
    taken(path, *named)


WRONG_TYPES = [None, True, -1, "x\ny", [], {}, 10**30, math.nan]


@cases(10)
@given(name=st.sampled_from(NAMES), value=st.sampled_from(WRONG_TYPES))
def test_one_wrong_value_is_named_with_its_key(
    tmp_path: Path, name: tuple[str, ...], value: Any
) -> None:
    content = copy.deepcopy(CONTENT)
    block = content
    for part in name[:-1]:
        block = block[part]
    block[name[-1]] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    if taken(path):
        return
    shown = {
        repr(value).replace("\n", "\\n"),
        str(value).lower(),
        "10000000000000000000",
        "missing",
    }
    result_or_line(lambda: load_params(path), *shown)
    result_or_line(lambda: load_params(path), ".".join(name), name[-1])


# As somebody types them, in place of a value or of a line.
TYPED = [
    "!!python/object/apply:os.system ['true']", "!!binary aGVsbG8=", "!!set {a, b}",
    "!!omap [a: 1]", "!!int '7'", "!!str 7", "!!float 1", "!unknown x", "&a [*a]", "*nowhere",
    "&a 1", "<<: *a", "{<<: {a: 1}}", "<<: [1]", ".nan", ".inf", "-.INF", "0o17", "017", "0x1F",
    "0b1", "1_000", "1e3", "1.e+3", "190:20:30", "2001-01-01", "2001-13-45", "yes", "on", "~", "",
    "'", '"', '"\\ud800"', '"\\0"', '"\\x"', "|", ">-\n  a\n  b", "? [1]\n: 2", "? {a: 1}\n: 2",
    "[1, 2", "{a: 1", "a: b: c", "- 1", "- 1\n- 2", "%YAML 1.1", "---", "---\na: 1", "...", "\t1",
    "@a", "`a`", "#", "seed: 1", "seed: 1\nseed: 2", "1" * 5000, "[" * 3000, "{a: " * 300,
    "0." + "1" * 500, "=", "!!null x", "!!bool 7", "!!timestamp x", "!!seq {}", "!!map []", "!",
    "!!", "&", "*", "<<: 1", "1e400", "1e-400", "\ufeff", "\x07", "\u2028", "\x85", "é: è",
    "null: 1", "1: 2", "true: 1", "[a]: 1", "+1", "-0", "-0.0", "0777", "08",
]  # fmt: skip


@st.composite
def typed(draw: st.DrawFn) -> str:
    lines = TEXT.splitlines()
    for _ in range(draw(st.integers(1, 2))):
        k = draw(st.integers(0, len(lines) - 1))
        snippet = draw(st.sampled_from(TYPED) | st.text(max_size=10))
        how = draw(st.sampled_from(["value", "value", "line", "insert", "twice", "end", "indent"]))
        name, colon, _rest = lines[k].partition(":")
        if how == "value" and colon:
            lines[k] = f"{name}: {snippet}"
        elif how == "line":
            lines[k] = snippet
        elif how == "insert":
            lines.insert(k, snippet)
        elif how == "twice":
            lines.insert(k, lines[k])
        elif how == "end":
            lines = [*lines[: k + 1], snippet]
        else:
            lines[k] = draw(st.sampled_from([" ", "  ", "\t", "- "])) + lines[k]
    return "\n".join(lines)


@cases(20)
@given(text=typed())
@example(text="seed: !!bool 7")  # a KeyError of PyYAML, and the next an AttributeError
@example(text="seed: !!timestamp x")
@example(text="")
@example(text="---\n")
@example(text="[" * 3_000)
@example(text="a: " + "{a: " * 1_000)
def test_typed_mistakes_are_one_line_or_what_is_written(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    taken(path)


@cases(12)
@given(content=damaged(TEXT.encode()) | st.binary(max_size=200))
def test_damaged_parameters_are_one_line_or_what_is_written(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    taken(path)


@pytest.fixture
def project(boss, tmp_path: Path):
    shutil.copytree(ROOT / "inputs", tmp_path / "inputs")
    return boss


@cases(8)
@given(edit=edited())
def test_boss_check_says_all_right_or_one_line(project, edit: tuple[str, list[str]]) -> None:
    Path("params.yaml").write_text(edit[0])
    before = sorted(map(str, Path().rglob("*")))
    code, out, err = project("check")
    assert code in (0, 2)
    assert sorted(map(str, Path().rglob("*"))) == before
    if code == 0:
        assert "all right" in out
    else:
        assert err.startswith("error: "), err
        assert len(err.splitlines()) == 1, err
