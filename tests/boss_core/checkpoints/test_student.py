"""Students on disk: the same bits after loading, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from boss_core.checkpoints.lora import adaptable_layers, add_adapter, merge_adapter
from boss_core.checkpoints.student import CalledNetwork, Student, load_student, network_hash
from boss_core.io.files import sha256
from boss_core.ode.noise import NoiseSource
from boss_core.ode.schedule import Schedule
from boss_core.ode.solvers import ab2
from boss_core.ode.timesteps import uniform
from boss_core.straightening.straighten import StraightenSettings, straighten
from tests.helpers.own_network import CONVENTIONS, Plain, training
from tests.helpers.refusals import refused

SOURCE = NoiseSource((2,), 3)
AB2 = Schedule(timesteps=tuple(uniform(3)), solver="ab2", objective="uniform")


def trained(rank: int | None, convention: str = "plain") -> Student:
    make, velocity = CONVENTIONS[convention]
    chosen = StraightenSettings(training(iterations=5), rank, trajectories=20, grid=6)
    return straighten(make(), [AB2], SOURCE, chosen, velocity=velocity)[0]


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("convention", ["plain", "scalar time", "denoiser"])
def test_a_loaded_student_is_the_one_that_was_saved(
    rank: int | None, convention: str, tmp_path: Path
) -> None:
    student = trained(rank, convention)
    card = student.save(tmp_path / "out")
    make, velocity = CONVENTIONS[convention]
    network = make()
    loaded = load_student(str(tmp_path / "out"), network, velocity)
    assert loaded.network is network
    assert {type(layer) for layer in network.modules()} == {type(m) for m in make().modules()}
    for name, weight in student.network.state_dict().items():
        assert torch.equal(network.state_dict()[name], weight), name
    noise = SOURCE.draw(range(9), 0)[0]
    assert torch.equal(loaded.sample(noise), student.sample(noise))
    assert torch.equal(loaded.sample(noise), ab2(loaded.velocity, noise, AB2.timesteps))
    assert not torch.equal(loaded.sample(noise), ab2(trained(None).velocity, noise, uniform(4)))
    # The card says what it comes from, and a file has the steps for exports.
    assert card.teacher_hash == loaded.teacher_hash == network_hash(make())
    steps = Schedule.from_json((tmp_path / "out" / "schedule.json").read_text())
    assert steps == loaded.schedule == card.schedule
    # What was loaded can be saved, as the same files.
    loaded.save(tmp_path / "again")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    tensors = load_file(tmp_path / "out" / "student.safetensors")
    if rank is not None:
        assert all(".lora_" in name for name in tensors)
        assert sum(t.numel() for t in tensors.values()) == 2 * (8 + 32 + 32 + 32 + 32 + 2)


def test_weights_that_share_their_memory(tmp_path: Path) -> None:
    class Tied(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.same = self.layers

    chosen = StraightenSettings(training(iterations=3), trajectories=20, grid=6)
    (student,) = straighten(Tied(), [AB2], SOURCE, chosen)
    student.save(tmp_path)
    loaded = load_student(tmp_path, Tied())
    assert loaded.network.same is loaded.network.layers
    noise = SOURCE.draw(range(9), 0)[0]
    assert torch.equal(loaded.sample(noise), student.sample(noise))


def test_what_is_refused(tmp_path: Path) -> None:
    whole, adapter = tmp_path / "whole", tmp_path / "adapter"
    trained(None).save(whole)
    trained(2).save(adapter)
    refused(lambda: load_student(tmp_path, Plain()), "card.json: no such file; a student's folder")

    other = Plain()
    nn.init.ones_(other.layers[4].bias)
    before = network_hash(other)
    refused(lambda: load_student(adapter, other), before[:12], network_hash(Plain())[:12])
    load_student(whole, other)  # of which all weights are in the file

    wider = Plain(labels=True)
    before = network_hash(wider)
    refused(
        lambda: load_student(whole, wider),
        "layers.0.weight has shape (32, 8), but the network has (32, 9)",
    )
    assert network_hash(wider) == before
    refused(lambda: load_student(whole, nn.Linear(2, 2)), "bias is missing, but the network has")

    def change(folder: Path, what: Callable[[dict], dict], **card: object) -> Path:
        to = tmp_path / "changed"
        to.mkdir(exist_ok=True)
        save_file(what(load_file(folder / "student.safetensors")), to / "student.safetensors")
        found = json.loads((folder / "card.json").read_text())
        found |= {"weights_sha256": sha256(to / "student.safetensors"), **card}
        (to / "card.json").write_text(json.dumps(found))
        return to

    infinite = change(whole, lambda t: {n: w / 0.0 for n, w in t.items()})
    refused(lambda: load_student(infinite, Plain()), "values are not finite")
    higher = change(adapter, lambda t: t, rank=3)
    refused(lambda: load_student(higher, Plain()), "of rank 2, but card.json beside it says 3")
    some = change(adapter, lambda t: {n: w for n, w in t.items() if "layers.2" not in n})
    network = Plain()
    refused(lambda: load_student(some, network), "layers.2.lora_A.default.weight is missing")
    assert network_hash(network) == network_hash(Plain())
    file = whole / "student.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(lambda: load_student(whole, Plain()), "truncated or altered")
    (whole / "card.json").write_text("{}")
    refused(lambda: load_student(whole, Plain()), "card.json: weights_sha256: Field required")


class Layers(nn.Module):
    """Each kind of layer that may have an adapter or not, by its name."""

    def __init__(self) -> None:
        super().__init__()

        class Named(nn.Linear):
            """A class of the user's that computes as its parent."""

        class Other(nn.Linear):
            def forward(self, input):
                return 2 * super().forward(input)

        self.yes = nn.ModuleList([
            nn.Linear(4, 4), nn.Conv1d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv3d(4, 4, 3, padding=1, stride=2), Named(4, 4),
        ])  # fmt: skip
        self.no = nn.ModuleList([
            nn.Conv2d(4, 4, 3, padding=1, groups=2), Other(4, 4), nn.Embedding(4, 4),
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ConvTranspose2d(4, 4, 1),
        ])  # fmt: skip
        self.twice = nn.Linear(4, 4)
        self.again = self.twice
        self.tied, self.knot = nn.Linear(4, 4), nn.Linear(4, 4)
        self.knot.weight = self.tied.weight
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        linear, line, plane, space, named = self.yes
        y = named(linear(x))
        y = line(y.mT).mT
        y = plane(y.mT[..., None].expand(-1, -1, -1, 4))[..., 0].mT
        y = space(y.mT[..., None, None].expand(-1, -1, -1, 4, 4))[..., 0, 0].mT
        grouped, other, _, normed, _ = self.no
        y = normed(other(grouped(y.mT[..., None])[..., 0].mT))
        y = self.knot(self.tied(self.again(self.twice(y))))
        return self.attention(y, y, y)[0]


def test_layers_that_have_an_adapter_and_what_merging_makes_of_it() -> None:
    torch.manual_seed(0)
    network = Layers().eval()
    assert adaptable_layers(network) == [f"yes.{i}" for i in range(5)]
    x = torch.randn(2, 6, 4)
    called = CalledNetwork(network, lambda net, x, t: net(x))
    start = called(x, x)
    add_adapter(called, 2, seed=0)
    torch.testing.assert_close(called(x, x), start, rtol=1e-5, atol=1e-6)
    for name, weight in called.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(weight, std=0.3)
    with torch.no_grad():
        beside = called(x, x)
        merge_adapter(called)
        assert float((beside - start).abs().max()) > 1e-4
        torch.testing.assert_close(called(x, x), beside, rtol=1e-5, atol=1e-6)
    assert not [name for name, _ in network.named_parameters() if ".lora_" in name]


def test_a_network_without_such_layers_has_no_adapter() -> None:
    refused(lambda: add_adapter(nn.Sequential(nn.Embedding(2, 2)), 2, seed=0), "all weights")
