"""The calls of a diffusers pipeline, as options and a file of prompts say them."""

import ast
import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import prompt_calls
from flows.search.images import check_images, image_files, load_images

# Arguments of a pipeline's call that the search sets, or that are options by other names.
_SET = ("prompt", "generator", "latents", "num_inference_steps", "sigmas", "timesteps",
        "output_type", "return_dict", "num_images_per_prompt", "num_videos_per_prompt")  # fmt: skip
# Texts of which a batch has one a sample: prompt_2, negative_prompt, negative_prompt_2, ...
_TEXT = re.compile(r"(negative_)?prompt(_\d)?")
_NEEDED = "a text file with one prompt a line, or JSON lines, needed"


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and arguments of the pipeline's call that go with it alone.

    arguments: images as paths. where: it was found, for errors: the file and the line.
    """

    prompt: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    where: str = "prompts"


def read_prompts(path: Path | None) -> list[PromptRow]:
    """One prompt a line; empty lines are left out. Where the file's name ends in .jsonl, or its
    first line is a JSON object, each line is one: ``prompt``, and further arguments of the
    pipeline's call; paths of images are relative to the file's folder.

    InputError with the number of the line for what is no such line, or names an image that is not
    there."""
    if path is None:
        raise InputError(f"--prompts: missing; {_NEEDED}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}; {_NEEDED}") from error
    if "\0" in text:
        raise InputError(f"{path}: a binary file; {_NEEDED}")
    if path.suffix.lower() == ".jsonl" or _begins_with_object(text):
        lines = enumerate(text.split("\n"), start=1)  # others than \n may be within a string
        rows = [_row(line, f"{path}: line {k}", path.parent) for k, line in lines if line.strip()]
    else:
        rows = [PromptRow(line.strip()) for line in text.splitlines() if line.strip()]
    if not rows:
        raise InputError(f"{path}: no prompts in it; one a line needed")
    return rows


def is_text(name: str) -> bool:
    """Whether an argument is a text, of which a batch has one a sample."""
    return _TEXT.fullmatch(name) is not None


def _begins_with_object(text: str) -> bool:
    first = next((line for line in text.split("\n") if line.strip()), "")
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _row(line: str, where: str, folder: Path) -> PromptRow:
    try:
        found = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: no JSON ({reason}); an object with a prompt needed") from error
    if not isinstance(found, dict):
        raise InputError(f'{where}: {line.strip()!r:.60}; a JSON object, as {{"prompt": "a cat"}},'
                         " needed")  # fmt: skip
    for name, value in found.items():
        if is_text(name) and not isinstance(value, str):
            raise InputError(f"{where}: {name}: {value!r:.60}; text needed")
        if name in _SET and name != "prompt":
            raise InputError(f"{where}: {name} is set by the command; leave it out")
    if "prompt" not in found:
        raise InputError(f'{where}: no prompt; "prompt": "..." needed')
    prompt = found.pop("prompt")
    for name, paths in image_files(found).items():
        there = [str(folder / each) for each in paths]
        found[name] = there if isinstance(found[name], list) else there[0]
    check_images(found, where)
    return PromptRow(prompt, found, where)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} is given twice")
    return dict(pairs)


def call_arguments(
    guidance: float | None, size: tuple[int, ...] | None, given: Sequence[str]
) -> dict[str, Any]:
    """What ``--guidance``, ``--size`` and each ``--call NAME=VALUE`` say of the pipeline's call.
    A value is JSON or Python (numbers, true or True, null or None, lists), or else, and in a
    prompt, the text itself. InputError for an image that is not there."""
    found: dict[str, Any] = {} if guidance is None else {"guidance_scale": guidance}
    if size is not None:
        found |= dict(zip(("height", "width"), size, strict=True))
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--call: {text!r}; NAME=VALUE, as true_cfg_scale=4, needed")
        if name in _SET:
            raise InputError(f"--call: {name} is set by the command; leave it out")
        if name in found:
            raise InputError(f"--call: {name} is given twice; once needed")
        found[name] = value if "prompt" in name else _value(value)
    check_images(found, "--call")
    return found


def _value(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if found is None or isinstance(found, bool | int | float | str | list | dict):
            return found
    return text


@dataclass(frozen=True)
class SampleCalls:
    """What a pipeline is called with for any samples: sample i has row i modulo their number.

    rows: at least one. shared: arguments of all calls; a row's own replace them. images: how a
        batch is given the image of its samples: ``once`` for all of them, a list of one for
        ``each``, or not at all, so that its samples are called ``alone``; ``single`` where those
        without an image are too; None before `flows.search.pipeline_arguments.prepare_calls` found
        out what the pipeline takes.
    """

    rows: Sequence[PromptRow]
    shared: Mapping[str, Any] = field(default_factory=dict)
    images: str | None = None

    def row(self, sample: int) -> PromptRow:
        return self.rows[sample % len(self.rows)]

    def arguments(self, sample: int) -> dict[str, Any]:
        """Those of a sample's call but its prompt; images as paths, texts as they are."""
        return {**self.shared, **self.row(sample).arguments}

    def where(self, sample: int) -> dict[str, str]:
        """Where each of these arguments comes from, for errors."""
        options = {"guidance_scale": "--guidance", "height": "--size", "width": "--size"}
        found = {name: options.get(name, "--call") for name in self.shared}
        return found | dict.fromkeys(self.row(sample).arguments, self.row(sample).where)

    def parts(self, samples: range, batch_size: int) -> Iterator[range]:
        """Consecutive samples that one call serves, at most ``batch_size``: those whose own
        arguments are equal, but for texts, of which a call has one a sample."""
        for _, alike in groupby(samples, key=self._kind):
            found = list(alike)
            image = self.images == "alone" and image_files(self.arguments(found[0]))
            together = 1 if self.images == "single" or image else batch_size
            for start in range(0, len(found), together):
                part = found[start : start + together]
                yield range(part[0], part[-1] + 1)

    def call(self, part: range, *, seed: int) -> dict[str, Any]:
        """The arguments of the call for one of the `parts`: ``prompt`` and a generator a sample
        (`boss_core.interop.diffusers_pipelines.prompt_calls`), and those of `arguments`, with the
        images read."""
        every = [self.arguments(i) for i in part]
        texts = {
            name: [each[name] for each in every] if len(part) > 1 else value
            for name, value in every[0].items()
            if is_text(name) and isinstance(value, str)
        }
        others = load_images({k: v for k, v in every[0].items() if k not in texts})
        if self.images == "each":
            one = [name for name in image_files(every[0]) if not isinstance(others[name], list)]
            others |= {name: [others[name]] * len(part) for name in one}
        prompts = [self.row(i).prompt for i in part]
        (call,) = prompt_calls(prompts, batch_size=len(part), seed=seed, first=part.start, **others)
        return call | texts

    def _kind(self, sample: int) -> str:
        own = self.row(sample).arguments
        return json.dumps({k: None if is_text(k) else v for k, v in own.items()},
                          sort_keys=True)  # fmt: skip


def conditions(calls: SampleCalls, dtype: str) -> str:
    """What else than weights and noise the costs depend on, as a hash; of an image its bytes, and
    of one in a file of prompts nothing else."""
    rows = [
        [row.prompt, _with_digests(row.arguments)] if row.arguments else row.prompt
        for row in calls.rows
    ]
    content = json.dumps([rows, dict(calls.shared), dtype], sort_keys=True)
    digest = hashlib.sha256(content.encode())
    for _, paths in sorted(image_files(calls.shared).items()):
        for path in paths:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _with_digests(arguments: Mapping[str, Any]) -> dict[str, Any]:
    images = {
        name: [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        for name, paths in image_files(arguments).items()
    }
    return {**arguments, **images}


def check_names(pipeline: Any, calls: SampleCalls) -> None:
    """InputError for an argument that the pipeline's call does not take, saying where it is, and
    for a pipeline that takes no prompt, which every row has."""
    known = inspect.signature(type(pipeline).__call__).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        return
    if "prompt" not in known:
        own = ", ".join(name for name in known if name.endswith("_prompt") and "_per_" not in name)
        raise InputError(
            f"--pipeline: {type(pipeline).__name__} takes no prompt{f', but {own}' if own else ''};"
            " one that does needed"
        )
    for sample in range(len(calls.rows)):
        for name, where in calls.where(sample).items():
            if name in known:
                continue
            like = [k for k in known if set(k.split("_")) & set(name.split("_"))]
            takes = f"; it takes {', '.join(like)}" if like else ""
            raise InputError(
                f"{where}: {type(pipeline).__name__} takes no {name}{takes}; an argument of its"
                " call needed"
            )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
