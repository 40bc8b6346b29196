"""Folders of networks that are cut, altered or mixed up: the same weights, or one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from boss_core.checkpoints.folder import (
    CARD,
    WEIGHTS,
    load_checkpoint,
    read_label_counts,
    save_checkpoint,
)
from boss_core.checkpoints.load import load_teacher
from boss_core.io.files import sha256
from boss_core.networks.unet import UNet
from boss_core.ode.schedule import Schedule
from tests.helpers.cases import cases, damaged, result_or_line
from tests.helpers.unet import CONFIG

STEPS = Schedule(timesteps=(0.0, 0.35, 1.0), objective="uniform")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "net"
    torch.manual_seed(0)
    save_checkpoint(folder, UNet(CONFIG), teacher_hash="f" * 64, schedule=STEPS)
    return folder


def copied(whole: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    return folder


def weights_or_line(folder: Path, whole: Path) -> None:
    """Right weights or one line that names a file of the folder."""
    found = result_or_line(lambda: load_checkpoint(folder), str(folder))
    if found is not None:
        network, _ = found
        right = load_file(whole / WEIGHTS)
        there = network.state_dict()
        assert there.keys() == right.keys()
        assert all(torch.equal(there[name], right[name]) for name in right)


@cases(24)
@given(data=st.data())
def test_damaged_weights_are_one_line(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = copied(whole, tmp_path / "net")
    content = (whole / WEIGHTS).read_bytes()
    other = data.draw(damaged(content))
    (folder / WEIGHTS).write_bytes(other)
    weights_or_line(folder, whole)
    if other != content:
        assert result_or_line(lambda: load_checkpoint(folder), "truncated or altered") is None


@cases(30)
@given(data=st.data())
def test_a_damaged_card_is_the_same_weights_or_one_line(
    whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    folder = copied(whole, tmp_path / "net")
    (folder / CARD).write_bytes(data.draw(damaged((whole / CARD).read_bytes())))
    weights_or_line(folder, whole)
    result_or_line(lambda: load_teacher(folder), str(folder))


ODD: list[Any] = [
    None, True, -1, 0, 1, 3, 8, 16, 0.5, 1e9, 2**40, 10**30, "", "unet", "edm", "a\nb", [], [0],
    [1, 2], [10**9] * 3, [[1]], {}, {"a\nb": 1}, "0" * 64,
]  # fmt: skip


@cases(30)
@given(data=st.data())
def test_a_mistaken_card_is_the_same_weights_or_one_line(
    whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    folder = copied(whole, tmp_path / "net")
    card = json.loads((whole / CARD).read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        block = data.draw(st.sampled_from([card, card["config"], card["config"], card["schedule"]]))
        if not isinstance(block, dict):
            continue
        name = data.draw(st.sampled_from([*sorted(block), "a\nb", "classes", "image_width"]))
        if data.draw(st.integers(0, 5)):
            block[name] = data.draw(st.sampled_from(ODD))
        elif name not in ("config", "schedule"):
            block.pop(name, None)
    (folder / CARD).write_text(json.dumps(card))
    weights_or_line(folder, whole)


KINDS = (torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.complex64)
CHANGES: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda t: t[None],
    lambda t: t.flatten(),
    lambda t: t[:0],
    lambda t: torch.cat([t, t]),
    lambda t: torch.full_like(t, torch.nan),
    lambda t: torch.full_like(t, torch.inf),
    *(lambda t, kind=kind: t.to(kind) for kind in KINDS),
)


@cases(24)
@given(data=st.data())
def test_weights_of_another_network_are_one_line(
    whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Whole files whose hash the card has, as somebody writes who makes cards."""
    folder = copied(whole, tmp_path / "net")
    tensors = load_file(whole / WEIGHTS)
    name = data.draw(st.sampled_from(sorted(tensors)))
    how = data.draw(st.sampled_from(["out", "more", "renamed", "change", "change", "change"]))
    exact = False
    if how == "change":
        changed = data.draw(st.sampled_from(CHANGES))(tensors[name])
        exact = changed.shape == tensors[name].shape and changed.is_floating_point()
        tensors[name] = changed.contiguous()
    elif how == "more":
        tensors["a\nb"] = torch.zeros(1)
    else:
        moved = tensors.pop(name)
        if how == "renamed":
            tensors[f"{name}\n"] = moved
    save_file(tensors, folder / WEIGHTS)
    card = json.loads((folder / CARD).read_text())
    card["weights_sha256"] = sha256(folder / WEIGHTS)
    (folder / CARD).write_text(json.dumps(card))
    found = result_or_line(lambda: load_checkpoint(folder), str(folder / WEIGHTS))
    if found is not None:
        assert exact
        assert torch.equal(found[0].state_dict()[name], tensors[name].float())


@cases(24)
@given(data=st.data())
def test_damaged_bytes_that_the_card_vouches_for_are_no_traceback(
    whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    folder = copied(whole, tmp_path / "net")
    content = (whole / WEIGHTS).read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    damage = data.draw(damaged(content[:header])) + content[header:]
    (folder / WEIGHTS).write_bytes(damage)
    card = json.loads((folder / CARD).read_text())
    card["weights_sha256"] = sha256(folder / WEIGHTS)
    (folder / CARD).write_text(json.dumps(card))
    result_or_line(lambda: load_checkpoint(folder), str(folder / WEIGHTS))


@cases(24)
@given(content=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["counts", "a\nb"]), inner, max_size=2
    ), max_leaves=8,
))  # fmt: skip
@example(content={"counts": [1, 10**400]})
@example(content={"counts": [1e308, 1e308]})
def test_counts_of_labels_are_those_or_one_line(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    found = result_or_line(lambda: read_label_counts(tmp_path, 2), str(path))
    if found is not None:
        assert found == tuple(content["counts"])
