"""Command lines of generated options and values: a result, or one line and exit code 2."""

import inspect
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st

from boss_core.checkpoints.folder import save_checkpoint
from boss_core.networks.unet import UNet
from boss_core.ode.schedule import Schedule
from flows.cli.app import ALONE, OF_A_PROJECT, app
from tests.helpers.cases import cases
from tests.helpers.unet import CONFIG

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
STEPS = Schedule(timesteps=(0.0, 0.35, 1.0), objective="uniform")
SIGNATURES = {c.__name__: inspect.signature(c).parameters for c in (*ALONE, *OF_A_PROJECT)}
# Nothing here names a network that could be searched or trained: what a command takes, it has to
# be able to refuse. Of `sample` and `export` all may be right.
PATHS = [
    "nowhere", "file", "folder", "binary", "picture.png", "cost.npz", "deep.json", "no/a",
    "/dev/null", "/", "..", ".", "a\nb", "\x1b[31m", "é", "x" * 300, "x/" * 3000, "steps.json",
    "half.json", "loop", "prompts.txt",
]  # fmt: skip
NUMBERS = [
    "-1", "0", "1", "2", "7", "0.5", "nan", "inf", "-inf", "1e400", "1e-400", "2.5", str(2**31),
    str(2**63), str(2**64), str(10**30), "9" * 5000, "0x10", "1_000", " 1", "٣", "²", "1,2", "01",
]  # fmt: skip
TEXTS = [
    "", " ", "x", "a:b", ":", "math:pi", "math:hypot", "json:nothing", "os.path:join",
    "1,0.65,0.3,0", "1,nan", "2,1,0", "'", "-", "--", "-x", "--help", "a=b", "=", "a=", "=b",
    "seed=1", "seed=", "nan=nan", "budgets=[1", "3x8x8", "0x0", "x", "1x" * 200, "9" * 5000 + "x1",
    "cpu", "cuda:99", "mps", "auto", "float16", "euler", "ab2", "multistep", "heun", "karras",
    "auto", "gits", "json", "comfyui", "diffusers", "workspace", "HEAD", "boss", "*", "$(true)",
    "%s", "{0}", "None", "null", "true", "[]", "\t", "\r\n",
]  # fmt: skip
VALUES = (
    st.sampled_from(NUMBERS)
    | st.sampled_from(PATHS)
    | st.sampled_from(TEXTS)
    | st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=8)
)
RIGHT = st.sampled_from(["1", "2", "3", "8", "20", "100"])  # as far as types go
# Those that start a server, or would go on for long if everything were right.
NEVER_RIGHT = {"server"}


@st.composite
def lines(draw: st.DrawFn, command: str) -> list[str]:
    """Options of a command with values, arguments, and sometimes what no command has."""
    found: list[str] = []
    every = COMMANDS[command].params
    chosen = draw(st.lists(st.sampled_from(every or [None]), max_size=4))
    for parameter in every:
        if not (chosen.count(parameter) or (parameter.required and draw(st.integers(0, 19)))):
            continue
        if parameter.param_type_name == "argument":
            found.append(draw(VALUES))
        elif getattr(parameter, "is_flag", False):
            found.append(parameter.opts[0])
        else:
            kind = str(SIGNATURES[command][parameter.name].annotation)
            right = ("int" in kind or "float" in kind) and draw(st.integers(0, 9))
            found += [parameter.opts[0], draw(RIGHT if right else VALUES)]
    if command in NEVER_RIGHT or not draw(st.integers(0, 9)):
        found.insert(
            draw(st.integers(0, len(found))),
            draw(st.sampled_from(["--nothing", "-q", "more", "--no=1"])),
        )
    if not draw(st.integers(0, 30)):
        found.append("--help")
    return found


@pytest.fixture
def folder(boss):
    """An empty folder with one of each kind of thing that may be where another is wanted."""
    torch.manual_seed(0)
    save_checkpoint(Path("student"), UNet(CONFIG), schedule=STEPS)
    Path("steps.json").write_text(STEPS.to_json())
    Path("half.json").write_text(STEPS.to_json()[:80])
    Path("file").touch()
    Path("folder").mkdir()
    Path("prompts.txt").write_text("a\nb\n")
    Path("binary").write_bytes(b"\xff\xfe\x00" * 100)
    Path("picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    Path("cost.npz").write_bytes(b"PK\x03\x04" + bytes(50))
    Path("deep.json").write_text("[" * 100_000)
    Path("loop").symlink_to("loop")
    return boss


def listing() -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in Path().rglob("*") if not path.is_dir()}


def ends_well(boss, command: str, arguments: list[str]) -> None:
    before = listing()
    code, _, err = boss(command, *arguments)
    assert code in (0, 2), err
    assert "Traceback" not in err
    if code == 2:
        assert listing() == before
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        if "Usage: " in err:
            assert not errors
        else:
            assert len(errors) == 1, err
            assert err.splitlines()[-1] == errors[0], err
    else:
        for path in set(listing()) - set(before):
            Path(path).unlink()


SEARCHES = ("schedule", "straighten", "merge")


@cases(20)
@given(data=st.data())
def test_of_a_network(folder, data: st.DataObject) -> None:
    command = data.draw(st.sampled_from(SEARCHES))
    found = data.draw(lines(command))
    if command != "merge" and data.draw(st.booleans()):
        kinds = ("--velocity", "--checkpoint") if command == "schedule" else ("--network",)
        name = data.draw(st.sampled_from([*kinds, "--pipeline"]))
        more = "--prompts" if name == "--pipeline" else "--shape"
        found = [*found, name, data.draw(VALUES), more, data.draw(VALUES)]
    ends_well(folder, command, found)


@cases(12)
@given(data=st.data(), number=st.sampled_from(["1", "2", "3", "0", "x"]))
def test_of_a_student(folder, data: st.DataObject, number: str) -> None:
    command = data.draw(st.sampled_from(["sample", "export"]))
    found = data.draw(lines(command))
    if command == "sample":
        found = ["--checkpoint", "student", *found, "-n", number]
    elif data.draw(st.booleans()):
        found = ["student", *found[1:]]
    ends_well(folder, command, found)


@cases(12)
@given(data=st.data())
def test_of_a_project_where_there_is_none(folder, data: st.DataObject) -> None:
    command = data.draw(st.sampled_from([c.__name__ for c in OF_A_PROJECT]))
    ends_well(folder, command, data.draw(lines(command)))


@cases(12)
@given(
    words=st.lists(
        st.sampled_from([*COMMANDS, "--version", "--help", "--x", "-h", "chekc"]) | VALUES,
        max_size=2,
    )
)
def test_of_no_command(folder, words: list[str]) -> None:
    if words and words[0] in COMMANDS and words[-1] not in ("--help", "--x"):
        words = [*words, "--x"]
    code, _, err = folder(*words)
    assert code in (0, 2)
    assert "Traceback" not in err


@pytest.mark.parametrize("index", ["[" * 100_000, "[]", "{}", "1", "", "\x00"])
def test_a_pipeline_whose_index_is_none(folder, index: str) -> None:
    """One that is nested without end was a RecursionError."""
    Path("folder/model_index.json").write_text(index)
    for command in ("schedule", "straighten"):
        given = ["--pipeline", "folder", "--prompts", "prompts.txt", "--budget", "2"]
        ends_well(folder, command, [*given, "--out", "new"])
    ends_well(folder, "export", ["steps.json", "--to", "diffusers", "--scheduler", "folder"])
    ends_well(folder, "export", ["steps.json", "--to", "diffusers", "--scheduler", "deep.json"])


@pytest.mark.parametrize("shape", ["9" * 5000, "3x" + "9" * 5000, "²x2", "1x0"])
def test_a_shape_that_is_none(folder, shape: str) -> None:
    """Of more digits than Python reads was a ValueError."""
    given = ["--velocity", "math:hypot", "--shape", shape, "--budget", "2"]
    ends_well(folder, "schedule", given)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(folder, command: str) -> None:
    code, out, err = folder(command, "--help")
    assert (code, err) == (0, "")
    assert "Usage: " in out
