"""The U-Net and its checkpoints."""

import json
from pathlib import Path

import pytest
import torch

from boss_core.checkpoints.folder import CARD, WEIGHTS, load_checkpoint, save_checkpoint
from boss_core.errors import InputError
from boss_core.networks.unet import UNet, UNetConfig
from boss_core.ode.schedule import Schedule

CONFIG = UNetConfig(
    image_size=8,
    channels=3,
    base_channels=8,
    channel_multipliers=(1, 2),
    blocks=1,
    attention_sizes=(4,),
)


@pytest.fixture
def network() -> UNet:
    torch.manual_seed(0)
    network = UNet(CONFIG)
    for parameter in network.parameters():  # the last layer starts at zero, which hides faults
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def test_velocity_has_the_shape_of_its_input_and_depends_on_time(network: UNet) -> None:
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        early, late = network(x, torch.zeros(5)), network(x, torch.ones(5))
        mixed = network(x, torch.tensor([0.0, 1, 0, 1, 0]))
    assert early.shape == x.shape
    assert not torch.allclose(early, late)
    torch.testing.assert_close(mixed[0::2], early[0::2])
    torch.testing.assert_close(mixed[1::2], late[1::2])


def test_velocity_of_a_sample_does_not_depend_on_its_batch(network: UNet) -> None:
    x, t = torch.randn(9, 3, 8, 8), torch.rand(9)
    with torch.no_grad():
        whole = network(x, t)
        alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(9)])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-5)


def test_image_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(InputError, match="image_size: 10 cannot be halved 2 times"):
        UNet(CONFIG.model_copy(update={"image_size": 10, "channel_multipliers": (1, 2, 2)}))

    with pytest.raises(InputError, match="image_width: 6 cannot be halved 2 times"):
        UNet(CONFIG.model_copy(update={"image_width": 6, "channel_multipliers": (1, 2, 2)}))
    with pytest.raises(InputError, match="4 levels of an image of 8x8 end in one pixel of 8"):
        UNet(CONFIG.model_copy(update={"channel_multipliers": (1, 1, 1, 1)}))


def test_images_that_are_not_square(tmp_path: Path) -> None:
    wide = UNet(CONFIG.model_copy(update={"image_width": 12}))
    square = UNet(CONFIG)
    assert wide.config.sample_shape == (3, 8, 12)
    x = torch.randn(4, 3, 8, 12)
    assert wide(x, torch.rand(4)).shape == x.shape
    save_checkpoint(tmp_path, wide)
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded.config == wide.config
    assert json.loads((tmp_path / CARD).read_text())["config"]["image_width"] == 12
    assert "image_width" not in square.config.model_dump()  # cards of square ones are as ever
    attended = [m.attention for m in wide.down if hasattr(m, "attention")]
    # 12 and 6 pixels by the longer side: 4 is not met.
    assert all(isinstance(found, torch.nn.Identity) for found in attended)


def test_checkpoint_round_trip(network: UNet, tmp_path: Path) -> None:
    schedule = Schedule(timesteps=(0, 1), indices=(0, 100), objective="uniform")
    saved = save_checkpoint(tmp_path, network, teacher_hash="t", schedule=schedule)
    loaded, card = load_checkpoint(tmp_path)
    assert card == saved
    assert card.schedule == schedule
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert not any(p.requires_grad for p in loaded.parameters())
    # The same weights give the same bytes.
    before = (tmp_path / WEIGHTS).read_bytes()
    save_checkpoint(tmp_path, loaded)
    assert (tmp_path / WEIGHTS).read_bytes() == before


def test_a_checkpoint_that_does_not_hold_is_refused(network: UNet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere/card\.json: no such file"):
        load_checkpoint(tmp_path / "nowhere")

    save_checkpoint(tmp_path, network)
    weights, card = (tmp_path / WEIGHTS).read_bytes(), (tmp_path / CARD).read_text()

    (tmp_path / WEIGHTS).write_bytes(weights[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: truncated or altered"):
        load_checkpoint(tmp_path)

    (tmp_path / WEIGHTS).write_bytes(weights)
    wider = json.loads(card)
    wider["config"]["base_channels"] = 16
    (tmp_path / CARD).write_text(json.dumps(wider))
    with pytest.raises(InputError, match=r"has shape \(.*\), but the architecture in card\.json"):
        load_checkpoint(tmp_path)

    (tmp_path / CARD).write_text(card[:40])
    with pytest.raises(InputError, match=r"card\.json: "):
        load_checkpoint(tmp_path)

    (tmp_path / CARD).write_text(card)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: no such file"):
        load_checkpoint(tmp_path)
