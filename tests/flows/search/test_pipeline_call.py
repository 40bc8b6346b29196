"""The file of prompts, and the calls of a pipeline for any samples."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import VisualClozeGenerationPipeline
from PIL import Image

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import sample_generators
from flows.search.pipeline_call import (
    PromptRow,
    SampleCalls,
    check_names,
    conditions,
    read_prompts,
)


def write(folder: Path, name: str, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / name).write_text("\n".join(texts) + "\n")
    return folder / name


def picture(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)


def test_a_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "p.txt", "a cat", "", "  {not json} ", '{"prompt": "text here"}')
    assert [row.prompt for row in read_prompts(path)] == [
        "a cat", "{not json}", '{"prompt": "text here"}',
    ]  # fmt: skip
    path.write_bytes("\ufeffein Löwe\r\nzwei\r\n".encode())
    assert [row.prompt for row in read_prompts(path)] == ["ein Löwe", "zwei"]


def test_json_lines_have_arguments_of_their_own_and_images_beside_the_file(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "cat.png")
    lines = [
        {"prompt": "a\u2028b", "image": "cat.png", "true_cfg_scale": 3},
        "",
        {"prompt": "plain"},
        {"prompt": "two", "images": ["cat.png", "cat.png"], "negative_prompt": "dull"},
    ]
    (tmp_path / "in").mkdir(exist_ok=True)
    # Its first line tells what it is; a line separator within a string ends no line.
    path = write(tmp_path / "in", "p.txt", json.dumps(lines[0], ensure_ascii=False), *lines[1:])
    cat = str(tmp_path / "in" / "cat.png")
    assert read_prompts(path) == [
        PromptRow("a\u2028b", {"image": cat, "true_cfg_scale": 3}, f"{path}: line 1"),
        PromptRow("plain", {}, f"{path}: line 3"),
        PromptRow("two", {"images": [cat, cat], "negative_prompt": "dull"}, f"{path}: line 4"),
    ]


RIGHT = {"prompt": "a"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([RIGHT, "a cat"], "p.jsonl: line 2: no JSON (Expecting value"),
        ([RIGHT, "", "[1]"], "p.jsonl: line 3: '[1]'; a JSON object, as "),
        (["a cat"], "p.jsonl: line 1: no JSON"),
        ([{"text": "a"}], 'p.jsonl: line 1: no prompt; "prompt": "..." needed'),
        ([{"prompt": 3}], "p.jsonl: line 1: prompt: 3; text needed"),
        ([RIGHT | {"negative_prompt": None}], "line 1: negative_prompt: None; text needed"),
        ([RIGHT, RIGHT | {"sigmas": [1]}], "line 2: sigmas is set by the command; leave it out"),
        ([RIGHT | {"image": "none.png"}], "none.png: no such file; an image needed"),
        ([RIGHT | {"last_image": "p.jsonl"}], "p.jsonl: no image ("),
        (['{"prompt": "a", "prompt": "b"}'], "line 1: no JSON (prompt is given twice)"),
        (["", " "], "p.jsonl: no prompts in it; one a line needed"),
        (["[" * 100_000], "line 1: no JSON ("),
    ],
)
def test_what_is_wrong_in_a_line_is_said_with_its_number(
    tmp_path: Path, lines: list[object], message: str
) -> None:
    with pytest.raises(InputError) as error:
        read_prompts(write(tmp_path, "p.jsonl", *lines))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\xff\xfe", "can't decode byte"),
        (b"a\0b\n", "a binary file; a text file with one prompt a line, or JSON lines, needed"),
        (b"", "no prompts in it"),
        (None, "Is a directory"),
    ],
)
def test_a_file_that_is_no_text_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "p.txt"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(path)
    with pytest.raises(InputError, match="No such file"):
        read_prompts(tmp_path / "none.txt")


def test_a_call_serves_samples_whose_arguments_are_equal_but_for_texts() -> None:
    rows = [
        PromptRow("a", {"negative_prompt": "x"}),
        PromptRow("b", {"negative_prompt": "y"}),
        PromptRow("c", {"height": 8}),
    ]
    calls = SampleCalls(rows, {"guidance_scale": 3.0, "height": 16, "prompt_2": "z"})
    parts = list(calls.parts(range(1, 9), 4))
    assert parts == [range(1, 2), range(2, 3), range(3, 5), range(5, 6), range(6, 8), range(8, 9)]
    call = calls.call(range(3, 5), seed=7)
    generators = call.pop("generator")
    assert call == {
        "prompt": ["a", "b"],
        "negative_prompt": ["x", "y"],
        "prompt_2": ["z", "z"],
        "guidance_scale": 3.0,
        "height": 16,
    }
    for found, expected in zip(generators, sample_generators(range(3, 5), 7), strict=True):
        assert torch.equal(found.get_state(), expected.get_state())
    assert calls.call(range(2, 3), seed=7)["height"] == 8  # its own replaces that of all


def test_an_image_is_given_as_the_pipeline_takes_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png", {"a": "red", "b": "blue"}[name])
    own = [{"image": str(tmp_path / f"{name}.png")} for name in "aab"]
    rows = [PromptRow("p", each) for each in own]
    assert list(SampleCalls(rows).parts(range(3), 8)) == [range(2), range(2, 3)]
    once = SampleCalls(rows, images="once").call(range(2), seed=0)["image"]
    assert once.getpixel((0, 0)) == (255, 0, 0)
    each = SampleCalls(rows, images="each").call(range(2), seed=0)["image"]
    assert [image.getpixel((0, 0)) for image in each] == [(255, 0, 0)] * 2
    alone = SampleCalls(rows, images="alone")
    assert list(alone.parts(range(3), 8)) == [range(1), range(1, 2), range(2, 3)]
    # Several images of one sample stay so.
    paths = [each["image"] for each in own]
    several = SampleCalls([PromptRow("p", {"image": paths})], images="once")
    assert len(several.call(range(2), seed=0)["image"]) == 3


def test_conditions_are_those_of_before_and_cover_what_rows_have(tmp_path: Path) -> None:
    shared = {"guidance_scale": 3.0}
    plain = [PromptRow("a", where="x"), PromptRow("b")]
    # As earlier versions made it: such searches go on.
    before = hashlib.sha256(b'[["a", "b"], {"guidance_scale": 3.0}, "float32"]').hexdigest()
    assert conditions(SampleCalls(plain, shared), "float32") == before

    def hashed(**own: object) -> str:
        return conditions(SampleCalls([PromptRow("a", own), PromptRow("b")], shared), "float32")

    picture(tmp_path / "a.png")
    picture(tmp_path / "moved" / "b.png")
    red, moved = (hashed(image=str(tmp_path / name)) for name in ("a.png", "moved/b.png"))
    assert red == moved  # of an image its bytes
    picture(tmp_path / "a.png", "blue")
    found = {before, red, hashed(image=str(tmp_path / "a.png")), hashed(height=8), hashed(height=9)}
    assert len(found) == 5


def test_a_pipeline_that_takes_no_prompt_is_refused_by_what_it_takes() -> None:
    with pytest.raises(InputError) as refused:
        check_names(object.__new__(VisualClozeGenerationPipeline), SampleCalls([PromptRow("a")]))
    assert str(refused.value) == (
        "--pipeline: VisualClozeGenerationPipeline takes no prompt, but task_prompt,"
        " content_prompt; one that does needed"
    )
