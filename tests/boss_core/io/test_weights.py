"""Weights that are none, in every kind of file that networks come in, and cards of absurd sizes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from boss_core.checkpoints.edm import from_published
from boss_core.checkpoints.folder import CARD, WEIGHTS, load_checkpoint, save_checkpoint
from boss_core.checkpoints.lora import add_adapter, load_adapter, save_adapter
from boss_core.checkpoints.rectified_flow import load_rectified_flow
from boss_core.errors import InputError
from boss_core.io.files import sha256
from boss_core.io.tensor_files import read_tensors
from boss_core.io.weights import check_sums
from boss_core.networks.classifier import (
    Classifier,
    ClassifierConfig,
    load_classifier,
    save_classifier,
)
from boss_core.networks.edm import EDM, EDMConfig
from boss_core.networks.unet import UNet
from tests.helpers.edm import NCSNPP
from tests.helpers.rectified_flow import publish, settings, small
from tests.helpers.refusals import refused
from tests.helpers.unet import CONFIG

Change = Callable[[Tensor], Tensor]


def with_value(value: float) -> Change:
    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed.view(-1)[1] = value
        return changed

    return change


IN_ANY_FILE: dict[str, tuple[Change, str]] = {
    "NaN": (with_value(float("nan")), "values are not finite (the first is nan)"),
    "inf": (with_value(float("-inf")), "1 of {n} values are not finite (the first is -inf)"),
    "bool": (lambda t: t.bool(), "is bool; float32 or bfloat16 or float16 or float64 needed"),
    "int8": (lambda t: t.to(torch.int8), "is int8; float32"),
    "complex": (lambda t: t.to(torch.complex64), "is complex64; float32"),
    "8 bits": (lambda t: t.to(torch.float8_e4m3fn), "is float8_e4m3fn; float32"),
    "too large": (
        lambda t: t.double() + 1e300,
        "{n} of {n} values are not finite in float32 (the first is 1e+300)",
    ),
}
IN_A_PICKLE: dict[str, tuple[Change, str]] = {
    "sparse": (lambda t: t.to_sparse(), "is sparse_coo; plain numbers needed"),
    "meta": (lambda t: t.to("meta"), "is meta (without numbers); plain numbers needed"),
    "quantised": (
        lambda t: torch.quantize_per_tensor(t, 1.0, 0, torch.qint8),
        "is quantised; plain numbers needed",
    ),
}


def altered(folder: Path, name: str, change: Change) -> tuple[str, int]:
    """Change the last matrix of a file and its hash in the card: what a tool of others, or a
    training that diverged, would have written."""
    path = folder / name
    tensors = load_file(path)
    key = [k for k, tensor in tensors.items() if tensor.ndim > 1][-1]
    size = tensors[key].numel()
    save_file(tensors | {key: change(tensors[key])}, path)
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"weights_sha256": sha256(path)}))
    return key, size


@pytest.mark.parametrize(("change", "says"), IN_ANY_FILE.values(), ids=IN_ANY_FILE)
def test_a_checkpoint_an_adapter_and_a_classifier(tmp_path: Path, change, says: str) -> None:
    network = UNet(CONFIG)
    card = save_checkpoint(tmp_path / "net", network)
    add_adapter(network, 2, seed=0)
    save_adapter(tmp_path / "lora", network, rank=2, teacher_hash=card.weights_sha256)
    key, n = altered(tmp_path / "lora", "adapter.safetensors", change)
    refused(
        lambda: load_adapter(tmp_path / "lora", tmp_path / "net"),
        f"adapter.safetensors: {key}",
        says.format(n=n),
    )
    key, n = altered(tmp_path / "net", WEIGHTS, change)
    refused(lambda: load_checkpoint(tmp_path / "net"), f"{WEIGHTS}: {key}", says.format(n=n))

    path = tmp_path / "classifier.safetensors"
    config = ClassifierConfig(channels=1, classes=3, width=8, features=6)
    save_classifier(path, Classifier(config))
    tensors = load_file(path)
    changed = tensors | {"to_logits.weight": change(tensors["to_logits.weight"])}
    path.write_bytes(save(changed, {"config": config.model_dump_json()}))
    refused(lambda: load_classifier(path), "to_logits.weight", says.format(n=18))


@pytest.mark.parametrize(
    ("change", "says"),
    [*IN_ANY_FILE.values(), *IN_A_PICKLE.values()],
    ids=[*IN_ANY_FILE, *IN_A_PICKLE],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_pickle_of_rectified_flow_and_a_state_dict_of_edm(
    tmp_path: Path, change, says: str
) -> None:
    network = small("ddpmpp")
    key = [name for name, p in network.named_parameters() if p.ndim == 2][-1]
    for kind in ("model", "ema"):
        model = {k: v.clone() for k, v in network.state_dict().items()}
        average = [p.detach() for p in network.parameters()]
        n = model[key].numel()
        if kind == "model":
            model[key] = change(model[key])
        else:
            place = [name for name, _ in network.named_parameters()].index(key)
            average[place] = change(average[place])
        publish(tmp_path / "c.pth", network, model=model, ema={"shadow_params": average})
        refused(
            lambda raw=kind == "model": load_rectified_flow(
                tmp_path / "c.pth", settings("ddpmpp"), use_ema=not raw
            ),
            f"c.pth: {key}",
            says.format(n=n),
        )
    state = EDM(EDMConfig.model_validate(NCSNPP)).state_dict()
    key = "model.map_layer0.weight"
    refused(
        lambda: from_published(NCSNPP, {**state, key: change(state[key])}),
        f"state dict: {key}",
        says.format(n=state[key].numel()),
    )


def test_the_rank_of_an_adapter_is_compared_before_it_is_made(tmp_path: Path) -> None:
    network = UNet(CONFIG)
    card = save_checkpoint(tmp_path / "net", network)
    add_adapter(network, 2, seed=0)
    save_adapter(tmp_path / "lora", network, rank=2, teacher_hash=card.weights_sha256)
    text = (tmp_path / "lora" / CARD).read_text()
    (tmp_path / "lora" / CARD).write_text(text.replace('"rank": 2', f'"rank": {10**12}'))
    refused(
        lambda: load_adapter(tmp_path / "lora", tmp_path / "net"),
        "adapter.safetensors: of rank 2, but card.json beside it says 1000000000000",
    )


def test_a_bit_that_is_another_is_refused_in_a_line_or_matters_not(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(2)}, path)
    whole = path.read_bytes()
    said = set()
    for bit in range(0, 8 * len(whole), 5):
        altered = bytearray(whole)
        altered[bit // 8] ^= 1 << bit % 8
        path.write_bytes(altered)
        try:
            check_sums(path)
        except InputError as error:
            said.add(str(error).split(":")[1])
    assert said == {" altered"}


def test_a_file_of_tensors_that_is_not_there_is_not_called_truncated(tmp_path: Path) -> None:
    refused(lambda: read_tensors(tmp_path, "weights"), f"{tmp_path}: a folder; weights needed")
    path = tmp_path / "w.pth"
    refused(lambda: read_tensors(path, "weights"), f"{path}: no such file; weights needed")
