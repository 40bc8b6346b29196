"""Rectified Flow checkpoints, against results of the published implementation."""

import contextlib
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from boss_core.bellman.recursion import optimal_paths
from boss_core.checkpoints.folder import (
    ARCHITECTURES,
    CARD,
    Network,
    load_checkpoint,
    load_rectified_flow,
    save_checkpoint,
)
from boss_core.checkpoints.rectified_flow import PUBLISHED
from boss_core.costs.matrix import CostMatrix, estimate_cost_matrix
from boss_core.errors import InputError
from boss_core.networks.ncsnpp import NCSNpp, NCSNppConfig
from boss_core.ode.solvers import euler, heun, rk45
from boss_core.ode.timesteps import uniform
from boss_core.ode.velocity import CountedVelocity
from flows.config import load_params
from flows.stages.teacher import read_teacher
from tests.helpers.checkout import ROOT, SHARED, needs_shared
from tests.helpers.rectified_flow import publish, settings, small

SETS = ("rf_cifar", "rf_256")


class Reference:
    """One of the two published layouts, made small, and what its network gives."""

    def __init__(self, name: str) -> None:
        folder = SHARED / "reference" / name
        self.checkpoint, self.config = folder / "checkpoint_0.pth", folder / "config.json"
        self.expected: dict[str, Any] = json.loads((folder / "expected.json").read_text())
        with np.load(folder / "expected.npz") as file:
            self.arrays: dict[str, NDArray] = {key: file[key] for key in file}
        self.network = load_rectified_flow(self.checkpoint, self.config)
        self._matrix: CostMatrix | None = None

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    def matrix(self) -> CostMatrix:
        if self._matrix is None:
            grid = uniform(self.expected["K_max"])
            noise = self.tensor("noise")
            self._matrix = estimate_cost_matrix(self.network, noise, grid, batch_size=len(noise))
        return self._matrix


@pytest.fixture(scope="module", params=SETS)
def reference(request: pytest.FixtureRequest) -> Reference:
    if not (SHARED / "reference").is_dir():
        pytest.skip("the reference results are not beside this checkout")
    return Reference(request.param)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_velocity(reference: Reference) -> None:
    found = reference.network(reference.tensor("x"), reference.tensor("t"))
    for one, expected in zip(found, reference.tensor("v"), strict=True):
        assert relative(one, expected) < 1e-5


def test_parameters_are_counted_as_published(reference: Reference) -> None:
    tensors = reference.network.state_dict().values()
    assert sum(tensor.numel() for tensor in tensors) == reference.expected["num_params"]
    assert not any(p.requires_grad for p in reference.network.parameters())
    assert not reference.network.training


def test_cost_matrix(reference: Reference) -> None:
    """The reference adds up squares of small differences in float32: of rf_256, entries two apart
    are off by up to 1.1e-3 from the same network in float64, where ours are within 5e-6."""
    found, expected = reference.matrix().cost, reference.arrays["cost_matrix"]
    i, j = np.triu_indices(len(expected), k=2)
    error = np.abs(found[i, j] - expected[i, j]) / expected[i, j]
    assert error[j - i == 2].max() < 2e-3
    assert error[j - i > 2].max() < 1e-3
    assert np.median(error) < 1e-4


def test_schedules(reference: Reference) -> None:
    paths = optimal_paths(reference.matrix().cost, range(1, 13))
    for budget, path in paths.items():
        assert list(path.indices) == reference.expected["paths"][str(budget)]
        assert path.cost == pytest.approx(reference.expected["path_cost"][str(budget)], rel=1e-4)


def test_samples(reference: Reference) -> None:
    times = uniform(reference.expected["K_max"])[reference.expected["paths"]["6"]]
    noise = reference.tensor("noise")[:4]
    found = euler(reference.network, noise, times)
    torch.testing.assert_close(found, reference.tensor("euler_bellman6"), rtol=0, atol=1e-5)
    velocity = CountedVelocity(reference.network)
    found = heun(velocity, noise, uniform(6))
    torch.testing.assert_close(found, reference.tensor("heun_uniform6"), rtol=0, atol=1e-5)
    assert velocity.nfe == reference.expected["heun_nfe"]


def test_rk45(reference: Reference) -> None:
    """Another implementation with another error norm: both are within 4e-4 (relative) of a solution
    to 1e-8, so of each other within twice that."""
    found = rk45(reference.network, reference.tensor("noise")[:1], rtol=1e-5, atol=1e-5)
    assert relative(found, reference.tensor("rk45")[:1]) < 8e-4


@needs_shared
@pytest.mark.parametrize("name", SETS)
def test_raw_and_averaged_weights_differ_and_load(name: str) -> None:
    reference = Reference(name)
    raw = load_rectified_flow(str(reference.checkpoint), str(reference.config), use_ema=False)
    stored = torch.load(reference.checkpoint, weights_only=True)
    for key, tensor in raw.state_dict().items():
        assert torch.equal(tensor, stored["model"][f"module.{key}"])
    pairs = zip(reference.network.parameters(), stored["ema"]["shadow_params"], strict=True)
    assert all(torch.equal(found, expected) for found, expected in pairs)
    x, t = reference.tensor("x"), reference.tensor("t")
    assert relative(raw(x, t), reference.tensor("v")) > 1e-3


@needs_shared
@pytest.mark.parametrize("name", SETS)
def test_it_becomes_a_checkpoint_of_this_project(name: str, tmp_path: Path) -> None:
    reference = Reference(name)
    card = save_checkpoint(tmp_path, reference.network)
    assert card.architecture == "ncsnpp"
    again, found = load_checkpoint(tmp_path)
    assert isinstance(again, NCSNpp)
    assert found == card
    x, t = reference.tensor("x"), reference.tensor("t")
    assert torch.equal(again(x, t), reference.network(x, t))


def test_published_configurations() -> None:
    assert list(PUBLISHED) == ["afhq_cat", "celeba_hq", "cifar10", "lsun_bedroom", "lsun_church"]
    for path in PUBLISHED.values():
        content = json.loads(path.read_text())
        flat = content["data"] | content["model"]
        config = NCSNppConfig(**{name: flat[name] for name in NCSNppConfig.model_fields})
        with torch.device("meta"):
            network = NCSNpp(config)
        count = sum(parameter.numel() for parameter in network.parameters())
        if path.stem == "cifar10":
            assert config.sample_shape == (3, 32, 32)
            assert round(count / 1e6, 1) == 61.8
        else:
            assert config.sample_shape == (3, 256, 256)
            assert 60e6 < count < 70e6


def says(path: Path, config: Any, *texts: str, use_ema: bool = True) -> None:
    """Loading is refused in one line that has all of the texts."""
    with pytest.raises(InputError) as caught:
        load_rectified_flow(path, config, use_ema=use_ema)
    message = str(caught.value)
    assert "\n" not in message
    for text in texts:
        assert text in message, message


class Hostile:
    """Unpickling it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("form", ["zip", 2, 4])
def test_a_hostile_pickle_executes_nothing(tmp_path: Path, form: str | int) -> None:
    path, trace = tmp_path / "hostile.pth", tmp_path / "trace"
    content = {"model": {}, "ema": Hostile(trace)}
    if isinstance(form, int):
        path.write_bytes(pickle.dumps(content, protocol=form))
    else:
        torch.save(content, path)
    if form == 4:  # its instructions are unknown to torch's reader, so it is not told what it asks
        says(path, settings("ddpmpp"), "truncated or not a PyTorch checkpoint of tensors")
    else:
        says(path, settings("ddpmpp"), "refused, nothing of it was executed", "posix.mkdir")
    assert not trace.exists()
    # The file is live: where nothing guards, it is executed.
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)
    assert trace.is_dir()


def test_files_that_are_no_such_checkpoint(tmp_path: Path) -> None:
    config = settings("ncsnpp")
    network = small("ncsnpp")
    whole = publish(tmp_path / "whole.pth", network)
    load_rectified_flow(whole, config)

    says(tmp_path / "none.pth", config, "none.pth: no such file")
    says(
        tmp_path, config, f"{tmp_path}: a folder; a Rectified Flow checkpoint (.pth, .safetensors)"
    )
    size = whole.stat().st_size
    for kept in (size - 100, size // 2, 30, 0):
        cut = tmp_path / "cut.pth"
        cut.write_bytes(whole.read_bytes()[:kept])
        says(cut, config, "cut.pth: truncated or not a PyTorch checkpoint")
    for content in (b"not a checkpoint", b"\x80\x02", b"PK\x03\x04" + bytes(100), bytes(5000)):
        other = tmp_path / "other.pth"
        other.write_bytes(content)
        says(other, config, "other.pth: truncated or not a PyTorch checkpoint")
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    says(tmp_path / "a.safetensors", config, "a.safetensors: does not fit config: parameters: ")
    torch.save({"all_modules.0.W": torch.zeros(2)}, tmp_path / "bare.pth")
    says(tmp_path / "bare.pth", config, "does not fit config: parameters: ", "missing")
    torch.save({"weights": network.state_dict()}, tmp_path / "named.pth")
    says(tmp_path / "named.pth", config, "holds weights; model and ema", "state dict needed")
    torch.save([1, 2], tmp_path / "list.pth")
    says(tmp_path / "list.pth", config, "list.pth: holds list; model and ema")
    torch.save({}, tmp_path / "empty.pth")
    says(tmp_path / "empty.pth", config, "empty.pth: holds nothing; model and ema")
    publish(tmp_path / "number.pth", network, model={"module.a": 1})
    says(tmp_path / "number.pth", config, "model is not a mapping of names to tensors")


def test_layouts_of_others_hold_the_same_network(tmp_path: Path) -> None:
    network, other, config = small("ncsnpp"), small("ncsnpp"), settings("ncsnpp")
    torch.nn.init.ones_(other.all_modules[3].weight)
    state, averaged = network.state_dict(), other.state_dict()
    behind = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    layouts: dict[str, tuple[dict[str, Any], NCSNpp]] = {
        "compiled": ({"model": {f"_orig_mod.{k}": v for k, v in state.items()}}, network),
        "compiled, in parallel": ({"model": behind}, network),
        "numbers": ({"model": state, "step": np.int64(3), "loss": np.float32(0.5)}, network),
        "averages by name": ({"model": state, "ema": averaged}, other),
        "averages behind module.": (
            {"model": state, "ema": {f"module.{k}": v for k, v in averaged.items()}},
            other,
        ),
        "bare": (state, network),
        "bare, compiled": (behind, network),
    }
    for name, (content, expected) in layouts.items():
        torch.save(content, tmp_path / "c.pth")
        use_ema = "ema" in content or "model" not in content
        found = load_rectified_flow(tmp_path / "c.pth", config, use_ema=use_ema).state_dict()
        for key, tensor in expected.state_dict().items():
            assert torch.equal(found[key], tensor), (name, key)
    averaged.pop("all_modules.3.weight")
    publish(tmp_path / "c.pth", network, ema=averaged)
    says(tmp_path / "c.pth", config, "ema does not fit config: 1 parameters missing (all_modules.3")


def test_a_flipped_bit_is_seen_by_the_checksum(tmp_path: Path) -> None:
    network, config = small("ddpmpp"), settings("ddpmpp")
    path = publish(tmp_path / "c.pth", network)
    whole = bytearray(path.read_bytes())
    weights = list(network.parameters())[3].detach().numpy().tobytes()
    place = whole.rindex(weights)
    for bit in range(8):
        flipped = bytearray(whole)
        flipped[place + 2] ^= 1 << bit
        path.write_bytes(flipped)
        says(path, config, "c.pth: altered: ", " has another checksum than when it was written; ")
    # Without checksums, as torch can be told to save, there is nothing to compare with.
    torch.serialization.set_crc32_options(False)
    try:
        publish(path, network)
    finally:
        torch.serialization.set_crc32_options(True)
    load_rectified_flow(path, config)


def test_a_configuration_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    publish(tmp_path / "c.pth", small("ddpmpp"))
    says(tmp_path / "c.pth", tmp_path / "deep.json", "deep.json: not JSON (")
    (tmp_path / "large.json").write_text("9" * 5000)
    says(tmp_path / "c.pth", tmp_path / "large.json", "large.json: not JSON (")
    config = settings("ddpmpp")
    for name, value in (("num_res_blocks", 10**6), ("ch_mult", [1] * 1000), ("nf", 10**30)):
        changed = {**config, "model": {**config["model"], name: value}}
        says(tmp_path / "c.pth", changed, f"config: model.{name}", "found; ")


def test_parameters_that_do_not_fit(tmp_path: Path) -> None:
    network, config = small("ncsnpp"), settings("ncsnpp")
    path = publish(tmp_path / "c.pth", network)
    model = torch.load(path, weights_only=True)["model"]

    less = dict(model)
    del less["module.all_modules.3.bias"], less["module.all_modules.1.weight"]
    less["module.extra"] = torch.zeros(1)
    publish(path, network, model=less)
    says(
        path, config,
        "c.pth: does not fit config: parameters: 2 missing (all_modules.1.weight,"
        " all_modules.3.bias); 1 unexpected (extra)",
    )  # fmt: skip

    publish(path, network)
    names, other = network.state_dict().keys(), small("ddpmpp").state_dict().keys()
    says(
        path, settings("ddpmpp"),
        f"{len(other - names)} missing (", f"{len(names - other)} unexpected (",
        f" and {len(names - other) - 8} more)",
    )  # fmt: skip

    wider = settings("ncsnpp")
    wider["model"]["nf"] = 12
    says(path, wider, "all_modules.0.W has shape (8,); (12,) needed")
    publish(path, network, model=model | {"module.all_modules.3.bias": torch.zeros(5)})
    says(path, config, "all_modules.3.bias has shape (5,); (8,) needed", use_ema=False)


def test_averages_that_do_not_fit(tmp_path: Path) -> None:
    network, config = small("ncsnpp"), settings("ncsnpp")
    averaged = [parameter.detach() for parameter in network.parameters()]
    count = len(averaged)
    path = publish(tmp_path / "c.pth", network, ema={"shadow_params": averaged[:-1]})
    says(path, config, f"ema.shadow_params has {count - 1} tensors, but config has {count}")
    load_rectified_flow(path, config, use_ema=False)
    # One more than parameters: the fixed frequencies are not among the averages.
    frequencies = [network.state_dict()["all_modules.0.W"]]
    publish(path, network, ema={"shadow_params": frequencies + averaged})
    says(path, config, f"has {count + 1} tensors, but config has {count}")
    publish(path, network, ema={"shadow_params": averaged[::-1]})
    says(path, config, "does not fit config: all_modules.1.weight has shape")
    for ema in (None, {}, {"shadow_params": 3}, {"shadow_params": [1]}):
        publish(path, network, ema=ema)
        says(path, config, "no list of tensors ema.shadow_params, nor a state dict ema; use_ema=F")


def test_configurations_that_do_not_hold(tmp_path: Path) -> None:
    path = publish(tmp_path / "c.pth", small("ncsnpp"))
    says(path, "cifar100", "config: 'cifar100' is no file and no published network; known: afhq")
    file = tmp_path / "c.json"
    file.write_text('{"data": ')
    says(path, file, "c.json: not JSON")
    file.write_text("[1]")
    says(path, str(file), "c.json: no blocks data and model")
    says(path, {"model": {}}, "config: no blocks data and model")
    for block, name, value, text in (
        ("model", "name", "ddpm", "config: model.name: 'ddpm' found; 'ncsnpp' needed"),
        ("model", "resblock_type", "ddpm", "model.resblock_type: 'ddpm' found; 'biggan' needed"),
        ("model", "progressive", "residual", "model.progressive: 'residual' found; input should"),
        ("model", "nf", 9, "model.nf: 9 found; input should be a multiple of 4"),
        ("data", "image_size", "big", "data.image_size: 'big' found"),
        ("data", "image_size", 9, "config: image_size: 9 cannot be halved 1 times"),
        ("model", "embedding_type", "positional", "scale_by_sigma: true with embedding_type"),
    ):
        changed = settings("ncsnpp")
        changed[block][name] = value
        says(path, changed, text)
    without = settings("ncsnpp")
    del without["model"]["ch_mult"]
    says(path, without, "config: model.ch_mult: field required")


def test_the_file_that_the_parameters_name(tmp_path: Path) -> None:
    network = small("ncsnpp")
    path = publish(tmp_path / "c.pth", network)
    (tmp_path / "c.json").write_text(json.dumps(settings("ncsnpp")))
    teacher = load_params(ROOT / "params.yaml").teacher

    def read(where: Path, config: Path | None) -> Network:
        change = {"path": str(where), "config": config and str(config)}
        return read_teacher(teacher.model_copy(update=change))

    for where in (path, tmp_path):  # the folder: then DVC sees a change of the configuration too
        found = read(where, tmp_path / "c.json").state_dict()
        assert all(torch.equal(found[n], tensor) for n, tensor in network.state_dict().items())
    with pytest.raises(InputError, match=r"teacher\.config: null, but teacher\.path, .*c\.pth"):
        read(path, None)
    with pytest.raises(InputError, match=r"card\.json: no such file"):
        read(tmp_path, None)
    publish(tmp_path / "d.pth", network)
    with pytest.raises(InputError, match=r": 2 \.pth files; exactly one, a Rectified Flow"):
        read(tmp_path, tmp_path / "c.json")


def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "inputs" / "teacher"
    folder.mkdir(parents=True)
    publish(folder / "checkpoint_0.pth", small("ddpmpp"))
    (folder / "config.json").write_text(json.dumps(settings("ddpmpp")))
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/teachers/rectified-flow.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert block.count('config = "cifar10"') == 1  # a network that is too large for a test
    block = block.replace('"cifar10"', '"inputs/teacher/config.json"')
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["images"].isfinite().all()
    assert load_checkpoint(Path("models/mine"))[1].architecture == "ncsnpp"


def test_a_card_of_another_architecture_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, small("ncsnpp"))
    card = json.loads((tmp_path / CARD).read_text())
    for change, text in (
        ({"architecture": "vit"}, f"architecture: 'vit' found; one of {', '.join(ARCHITECTURES)}"),
        ({"architecture": "unet"}, r"config: channels: Field required"),
        ({"config": card["config"] | {"nf": 0}}, r"config: nf: Input should be greater than"),
    ):
        (tmp_path / CARD).write_text(json.dumps(card | change))
        with pytest.raises(InputError, match=text):
            load_checkpoint(tmp_path)
