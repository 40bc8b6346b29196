"""Checkpoints as folders: cards of absurd sizes, and files that are whole or not there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from boss_core.checkpoints.folder import (
    CARD,
    load_checkpoint,
    read_label_counts,
    save_checkpoint,
)
from boss_core.checkpoints.lora import save_adapter
from boss_core.errors import InputError
from boss_core.networks.edm import EDM, EDMConfig
from boss_core.networks.unet import UNet
from tests.helpers.edm import NCSNPP
from tests.helpers.refusals import refused
from tests.helpers.unet import CONFIG


@pytest.mark.parametrize(
    ("architecture", "config", "says"),
    [
        ("unet", {"blocks": 10**6}, "config: blocks: Input should be less than or equal to 64"),
        ("unet", {"blocks": 64}, "has shape"),
        ("unet", {"base_channels": 8 << 10, "channel_multipliers": [1024, 1024]}, "has shape"),
        ("unet", {"base_channels": 10**30}, "config: base_channels: Input should be less"),
        ("unet", {"channel_multipliers": [1] * 10**4}, "config: channel_multipliers: Tuple"),
        ("unet", {"channel_multipliers": [1, 0]}, "config: channel_multipliers.1: Input should"),
        ("unet", {"image_size": 10**9}, "config: image_size: Input should be less than"),
        ("unet", {"classes": 10**12}, "config: classes: Input should be less than"),
        ("edm", {"num_blocks": 10**6}, "config: num_blocks: Input should be less than"),
        ("edm", {"resample_filter": [1] * 10**6}, "config: resample_filter: Tuple should have"),
        ("edm", {"channel_mult_emb": 1024, "model_channels": 1 << 15}, "has shape"),
        ("edm", {"label_dim": 10**12}, "config: label_dim: Input should be less than"),
    ],
)
def test_a_card_of_absurd_size_is_refused_at_once(
    tmp_path: Path, architecture: str, config: dict, says: str
) -> None:
    unet = architecture == "unet"
    save_checkpoint(tmp_path, UNet(CONFIG) if unet else EDM(EDMConfig.model_validate(NCSNPP)))
    card = json.loads((tmp_path / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps(card | {"config": card["config"] | config}))
    refused(lambda: load_checkpoint(tmp_path), says)  # it took hours, or all memory


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


@pytest.mark.parametrize("network", [Mine(), nn.Identity()], ids=["weights", "none"])
def test_a_network_of_the_users_own_is_refused_and_nothing_written(tmp_path: Path, network) -> None:
    kind = type(network).__name__
    refused(
        lambda: save_checkpoint(tmp_path / "net", network),
        f"network: {kind}; one of UNet, NCSNpp, EDM needed",
    )
    refused(
        lambda: save_adapter(tmp_path / "net", network, rank=1, teacher_hash=""),
        f"network: {kind} without an adapter; add_adapter needed",
    )
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_checkpoint_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    folder = tmp_path / "net"
    if there:
        save_checkpoint(folder, UNet(CONFIG))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if CARD in path.name:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    torch.manual_seed(1)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, UNet(CONFIG))
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert folder.exists() == there


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"counts": [3, 1, 0]}', (3.0, 1.0, 0.0)),
        (None, None),  # no such file
        *(
            (content, InputError)
            for content in (
                '{"counts": [3, 1]}', '{"counts": []}', '{"counts": "123"}',
                '{"counts": [0, 0, 0]}',
                '{"counts": [1, 2, NaN]}', '{"counts": [1, 2, -1]}', '{"counts": [true, 1, 1]}',
                '{"counts": {"1": 3, "2": 1, "3": 1}}', '{"counts": [1, 2, 1' + "0" * 400 + "]}",
                "[1, 2, 3]", "no JSON",
            )
        ),
    ],
)  # fmt: skip
def test_how_often_labels_come_is_one_number_a_class(
    tmp_path: Path, content: str | None, expected: Any
) -> None:
    path = tmp_path / "labels.json"
    if content is not None:
        path.write_text(content)
    if expected is InputError:
        with pytest.raises(InputError, match=r"labels\.json: not the counts of 3 labels"):
            read_label_counts(tmp_path, 3)
    else:
        assert read_label_counts(tmp_path, 3) == expected
    assert read_label_counts(tmp_path, None) is None
