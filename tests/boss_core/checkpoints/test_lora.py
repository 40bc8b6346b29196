"""LoRA by `peft` against B A added to W by hand, and adapters on disk."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from boss_core.checkpoints.folder import (
    ADAPTER,
    CARD,
    WEIGHTS,
    Network,
    load_checkpoint,
    read_card,
    save_checkpoint,
)
from boss_core.checkpoints.lora import (
    adapter_tensors,
    add_adapter,
    load_adapter,
    merge_adapter,
    read_adapter_card,
    save_adapter,
)
from boss_core.errors import InputError
from boss_core.networks.ncsnpp import StackedLinear, UnbiasedConv2d, UpsamplingConv2d
from boss_core.networks.unet import UNet, UNetConfig
from boss_core.ode.schedule import Schedule
from boss_core.training.loop import train
from boss_core.training.settings import TrainingSettings
from tests.helpers.edm import NCSNPP, build
from tests.helpers.rectified_flow import small

SCHEDULE = Schedule(timesteps=(0.0, 0.4, 1.0), indices=(0, 4, 10), objective="l2_squared")


def unet(seed: int = 0, base: int = 16) -> UNet:
    torch.manual_seed(seed)
    config = UNetConfig(
        image_size=8, channels=1, base_channels=base, channel_multipliers=(1, 2), blocks=1,
        attention_sizes=(4,), classes=3,
    )  # fmt: skip
    network = UNet(config)
    nn.init.normal_(network.last.weight, std=0.1)  # it starts at 0, which would hide the rest
    return network.eval().requires_grad_(False)


NETWORKS = {
    "unet": unet,
    "ddpmpp": lambda: small("ddpmpp").requires_grad_(False),
    "ncsnpp": lambda: small("ncsnpp").requires_grad_(False),
    "edm": lambda: build(**NCSNPP, label_dim=3),
}


def outputs(network: Network) -> torch.Tensor:
    torch.manual_seed(1)
    x = torch.randn(4, *network.config.sample_shape)
    t = torch.tensor([0.0, 0.3, 0.8, 1.0])
    labels = () if network.config.classes is None else (torch.tensor([0, 1, 2, 0]),)
    with torch.no_grad():
        return network(x, t, *labels)


def moved(network: Network) -> Network:
    """An adapter as training could leave it: nothing of it is 0."""
    torch.manual_seed(2)
    for _, tensor in adapter_tensors(network):
        nn.init.normal_(tensor, std=0.05)
    return network


def by_hand(plain: Network, adapted: Network) -> dict[str, torch.Tensor]:
    """The weights of the teacher with B A added to each, from the tensors alone."""
    weights = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    found = dict(adapter_tensors(adapted))
    for name, a in found.items():
        if ".lora_A." not in name:
            continue
        b = found[name.replace(".lora_A.", ".lora_B.")].double()
        rows = a.double().flatten(1)  # (rank, all inputs of an output)
        weight = name.split(".lora_A.")[0] + ".weight"
        weights[weight] += (b.flatten(1) @ rows).float().view_as(weights[weight])
    return weights


@pytest.mark.parametrize("kind", NETWORKS)
def test_starts_as_the_teacher_and_merges_to_w_plus_b_a(kind: str) -> None:
    plain = NETWORKS[kind]()
    before = outputs(plain)
    network = add_adapter(NETWORKS[kind](), 4, seed=0)
    assert torch.equal(outputs(network), before)

    beside = outputs(moved(network))
    assert float((beside - before).abs().max()) > 0.01
    expected = by_hand(plain, network)
    plain.load_state_dict(expected)
    torch.testing.assert_close(beside, outputs(plain), rtol=1e-5, atol=1e-5)
    merged = merge_adapter(network)
    assert type(merged) is type(plain)
    assert merged.state_dict().keys() == expected.keys()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(outputs(merged), beside, rtol=1e-5, atol=1e-5)


# `peft` itself would not enlarge what it takes through A and B in an upsampling convolution.
@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "ddpmpp"])
def test_output_and_gradients_are_those_of_peft(kind: str) -> None:
    ours = moved(add_adapter(NETWORKS[kind](), 2, seed=0)).double()
    peft = copy.deepcopy(ours)
    for layer in peft.modules():
        if isinstance(layer, BaseTunerLayer):
            del layer.forward
            base = layer.get_base_layer()
            if isinstance(base, StackedLinear):  # `peft` itself would give it an input
                both = base.weight + layer.get_delta_weight("default"), base.bias
                layer.forward = lambda both=both: both
    torch.manual_seed(3)
    inputs = [torch.randn(2, *ours.config.sample_shape).double(), torch.rand(2).double()]
    if ours.config.classes is not None:
        inputs.append(torch.tensor([0, 1]))
    found = []
    for network in (ours, peft):
        output = network(*inputs)
        output.square().mean().backward()
        found.append([output, *(p.grad for _, p in adapter_tensors(network))])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", NETWORKS)
def test_compiles_whole(kind: str) -> None:
    network = moved(add_adapter(NETWORKS[kind](), 2, seed=0))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(outputs(compiled), outputs(network))


@pytest.mark.parametrize("kind", NETWORKS)
def test_layers_are_the_plain_convolutions_and_linear_ones(kind: str) -> None:
    network = NETWORKS[kind]()
    plain = (nn.Conv2d, nn.Linear, StackedLinear, UnbiasedConv2d, UpsamplingConv2d)
    layers = [layer for layer in network.modules() if type(layer) in plain]
    # A: rank times the inputs of one output; B: outputs times rank.
    count = sum(3 * (layer.weight[0].numel() + len(layer.weight)) for layer in layers)
    add_adapter(network, 3, seed=0)
    assert sum(tensor.numel() for _, tensor in adapter_tensors(network)) == count
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in adapter_tensors(network)}


def test_the_start_is_of_the_seed_alone() -> None:
    network = unet()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = dict(adapter_tensors(add_adapter(network, 2, seed=3)))
    assert torch.equal(torch.rand(3), expected)
    again = dict(adapter_tensors(add_adapter(unet(), 2, seed=3)))
    other = dict(adapter_tensors(add_adapter(unet(), 2, seed=4)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "first.lora_A.default.weight"
    assert not torch.equal(first[name], other[name])


def test_training_moves_the_adapter_alone() -> None:
    teacher = unet()
    settings = TrainingSettings(
        iterations=5, batch_size=4, learning_rate=0.01, learning_rate_schedule="constant",
        warmup=0, gradient_clip=1.0, ema_decay=0.5,
    )  # fmt: skip
    x, t, labels = torch.randn(4, 1, 8, 8), torch.rand(4), torch.tensor([0, 1, 2, 0])
    network = train(
        add_adapter(unet(), 4, seed=0),
        lambda network, *_: (network(x, t, labels) - 1.0).square().mean(),
        settings,
    ).network
    found = {n.replace(".base_layer", ""): p for n, p in network.state_dict().items()}
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(found[name], tensor)
    assert all(p.any() for name, p in adapter_tensors(network) if ".lora_B." in name)


def test_a_file_of_the_adapter_alone(tmp_path: Path) -> None:
    teacher = unet(base=64)
    card = save_checkpoint(tmp_path / "teacher", teacher)
    network = moved(add_adapter(unet(base=64), 2, seed=0))
    beside = outputs(network)
    of = card.weights_sha256
    written = save_adapter(
        tmp_path / "adapter", network, rank=2, teacher_hash=of, schedule=SCHEDULE
    )
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {ADAPTER, CARD}
    share = (tmp_path / "adapter" / ADAPTER).stat().st_size / (
        tmp_path / "teacher" / WEIGHTS
    ).stat().st_size
    assert share < 0.04
    assert read_adapter_card(tmp_path / "adapter") == written
    assert (written.rank, written.teacher_hash, written.schedule) == (2, of, SCHEDULE)

    apart, found = load_adapter(tmp_path / "adapter", tmp_path / "teacher", merged=False)
    assert found == written
    assert torch.equal(outputs(apart), beside)
    merged, _ = load_adapter(tmp_path / "adapter", tmp_path / "teacher")
    assert not any(p.requires_grad for p in merged.parameters())
    assert not merged.training
    assert dict(adapter_tensors(merged)) == {}
    assert float((outputs(merged) - beside).norm() / beside.norm()) < 1e-5


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An adapter and its teacher."""
    card = save_checkpoint(tmp_path / "teacher", unet())
    network = moved(add_adapter(unet(), 4, seed=0))
    save_adapter(
        tmp_path / "adapter", network, rank=4, teacher_hash=card.weights_sha256, schedule=SCHEDULE
    )
    return tmp_path / "adapter", tmp_path / "teacher"


def test_another_teacher_is_refused_with_both_hashes(folders: tuple[Path, Path]) -> None:
    adapter, teacher = folders
    right = read_card(teacher).weights_sha256
    wrong = save_checkpoint(teacher.with_name("other"), unet(seed=7)).weights_sha256
    says = f"an adapter of the teacher {right[:12]}, but .*other is {wrong[:12]}"
    with pytest.raises(InputError, match=says):
        load_adapter(adapter, teacher.with_name("other"))


def test_files_that_do_not_hold_are_named(folders: tuple[Path, Path]) -> None:
    adapter, teacher = folders
    text = (adapter / CARD).read_text()
    (adapter / CARD).write_text(text.replace('"rank": 4', '"rank": 5'))
    with pytest.raises(InputError, match=r"of rank 4, but card.json beside it says 5"):
        load_adapter(adapter, teacher)
    (adapter / CARD).write_text(text.replace('"rank": 4', '"rank": 0'))
    with pytest.raises(InputError, match=r"card.json: rank: .*greater than or equal to 1"):
        load_adapter(adapter, teacher)
    (adapter / CARD).write_text(text)
    content = (adapter / ADAPTER).read_bytes()
    (adapter / ADAPTER).write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"adapter.safetensors: truncated or altered"):
        load_adapter(adapter, teacher)
    (adapter / ADAPTER).unlink()
    with pytest.raises(InputError, match=r"adapter.safetensors: no such file; an adapter's folder"):
        load_adapter(adapter, teacher)


def test_an_adapter_is_no_network_until_it_is_merged(folders: tuple[Path, Path], boss) -> None:
    adapter, teacher = folders
    with pytest.raises(InputError, match=f"an adapter, .*`boss merge {adapter} --teacher"):
        load_checkpoint(adapter)
    for command in (["sample"], ["schedule", "--budget", "2"]):
        code, _, error = boss(*command, "--checkpoint", adapter)
        assert code == 2
        assert f"error: {adapter}: an adapter, which is no network without its teacher" in error

    code, shown, _ = boss("merge", adapter, "--teacher", teacher, "--out", "merged")
    assert (code, shown.count("\n")) == (0, 1)
    merged, card = load_checkpoint(Path("merged"))
    assert (card.schedule, card.teacher_hash) == (SCHEDULE, read_card(teacher).weights_sha256)
    assert torch.equal(outputs(merged), outputs(load_adapter(adapter, teacher)[0]))
    code, shown, _ = boss("sample", "--checkpoint", "merged", "-n", "4", "--device", "cpu")
    assert code == 0
    assert shown.endswith("samples.png: 4 images, 2 network evaluations each\n")
    code, _, error = boss("merge", adapter, "--teacher", teacher, "--out", teacher)
    assert (code, error) == (2, f"error: --out: {teacher} is there already; a new folder needed\n")


def test_the_steps_of_a_student_are_exported_from_its_folder(
    folders: tuple[Path, Path], boss
) -> None:
    adapter, teacher = folders
    save_checkpoint(teacher.with_name("student"), unet(), schedule=SCHEDULE)
    for folder in (adapter, teacher.with_name("student")):
        code, shown, _ = boss("export", folder, "--to", "json")
        assert (code, json.loads(shown)["timesteps"]) == (0, [0.0, 0.4, 1.0])
    code, _, error = boss("export", teacher, "--to", "json")
    assert (code, error) == (
        2,
        f"error: {teacher}: a network without steps of its own; a student needed\n",
    )
