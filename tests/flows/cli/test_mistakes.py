"""Wrong files and values for every option of ``boss schedule``, ``sample`` and ``export``: one line
and exit code 2, never a traceback, and nothing written."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from boss_core.checkpoints.folder import save_checkpoint
from boss_core.errors import InputError
from boss_core.networks.unet import UNet
from boss_core.ode.schedule import Schedule
from flows.search.options import choose_device
from tests.helpers.unet import CONFIG

STEPS = Schedule(timesteps=(0.0, 0.5, 1.0), indices=(0, 1, 2), objective="uniform")
SCHEDULE = {"--checkpoint": "net", "--budget": "2", "--grid": "4", "--samples": "2"}
SAMPLE = {"--checkpoint": "student", "-n": "1"}
EXPORT = {"": "steps.json", "--to": "json"}

# Of every kind of thing that may be where another is wanted.
PATHS = [
    "nowhere",
    "file",
    "folder",
    "binary",
    "picture.png",
    "cost.npz",
    "deep.json",
    "net",
    "no/a",
]
NUMBERS = ["-1", "0", "nan", "1e400", "2.5", "x", "", str(2**63), str(2**64), str(10**30)]
TEXTS = ["", "x", "a:b", ":", "1,2", "é", "net", "'", "-"]
DEVICES = [*TEXTS, "cuda:99", "cuda:", "cuda:-1", "mps"]  # costs need float64, which mps lacks
LEVELS = ["", "x", "0", "0.5,0.7", "1,nan", "2,1,0", "1,1,0", "0.6,0.3"]


@pytest.fixture
def folder(boss):
    """An empty folder with one of each."""
    torch.manual_seed(0)
    network = UNet(CONFIG)
    save_checkpoint(Path("net"), network)
    save_checkpoint(Path("student"), network, schedule=STEPS)
    Path("steps.json").write_text(STEPS.to_json())
    Path("file").touch()
    Path("folder").mkdir()
    Path("binary").write_bytes(b"\xff\xfe\x00" * 100)
    Path("picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    Path("cost.npz").write_bytes(b"PK\x03\x04" + bytes(50))
    Path("deep.json").write_text("[" * 100_000)
    return boss


def listing() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}


def refused(boss, command: str, options: dict[str, str]) -> str:
    before = listing()
    arguments = [part for pair in options.items() for part in pair if part or pair[0]]
    code, out, err = boss(command, *arguments)
    assert code == 2, (arguments, out, err)
    assert "Traceback" not in err
    assert listing() == before
    return err


WRONG = [
    *(("schedule", SCHEDULE, "--checkpoint", path) for path in PATHS if path != "net"),
    *(("schedule", SCHEDULE, "--features", path) for path in [*PATHS, "student"]),
    *(("schedule", SCHEDULE, "--out", path) for path in ("file", "file/a", "binary")),
    *(("schedule", SCHEDULE, "--budget", n) for n in NUMBERS),
    *(("schedule", SCHEDULE, "--grid", n) for n in [*NUMBERS, "1", "100000000"]),
    *(("schedule", SCHEDULE, "--samples", n) for n in NUMBERS),
    *(("schedule", SCHEDULE, "--batch-size", n) for n in NUMBERS[:7]),
    *(("schedule", SCHEDULE, "--noises", n) for n in NUMBERS[:7]),
    *(("schedule", SCHEDULE, "--gamma", n) for n in [*NUMBERS[:2], "nan", "x", "", "11"]),
    *(("schedule", SCHEDULE, "--seed", n) for n in [*NUMBERS[:1], *NUMBERS[2:]]),
    *(("schedule", SCHEDULE, "--device", t) for t in DEVICES),
    *(("schedule", SCHEDULE, "--solver", t) for t in TEXTS),
    *(("schedule", SCHEDULE, "--objective", t) for t in TEXTS),
    *(("schedule", SCHEDULE, "--spacing", t) for t in TEXTS),
    *(("schedule", SCHEDULE, "--reference", t) for t in TEXTS),
    *(("schedule", SCHEDULE, "--velocity", t) for t in TEXTS),
    *(("schedule", SCHEDULE, "--compare", t) for t in LEVELS),
    *(("sample", SAMPLE, "--checkpoint", path) for path in [*PATHS]),
    *(("sample", SAMPLE, "--schedule", path) for path in [*PATHS]),
    *(("sample", SAMPLE, "--out", path) for path in ("folder", "net", "file/a.png", "a.jpg")),
    *(("sample", SAMPLE, "-n", n) for n in [*NUMBERS, "100000000000"]),
    *(("sample", SAMPLE, "--label", n) for n in NUMBERS),
    *(("sample", SAMPLE, "--seed", n) for n in [*NUMBERS[:1], *NUMBERS[2:]]),
    *(("sample", SAMPLE, "--device", t) for t in TEXTS),
    *(("sample", SAMPLE, "--sigmas", t) for t in LEVELS),
    *(("export", EXPORT, "", path) for path in [*PATHS]),
    *(("export", EXPORT, "--to", t) for t in TEXTS),
    *(("export", EXPORT, "--out", path) for path in ("folder", "net", "file/a.txt")),
]


@pytest.mark.parametrize(
    ("command", "option"), list(dict.fromkeys((command, option) for command, _, option, _ in WRONG))
)
def test_every_mistake_is_a_line(folder, command: str, option: str) -> None:
    for of, right, name, value in WRONG:
        if (of, name) == (command, option):
            refused(folder, command, {**right, name: value})


VELOCITY = {"--velocity": "math:hypot", "--shape": "2", "--budget": "2"}
PIPELINE = {"--pipeline": "net", "--prompts": "file", "--budget": "2"}


@pytest.mark.parametrize(
    ("network", "option", "value", "says"),
    [
        (SCHEDULE, "--prompts", "file", "--prompts: only goes with --pipeline"),
        (SCHEDULE, "--guidance", "4", "--guidance: only goes with --pipeline"),
        (SCHEDULE, "--guidance", "0", "--guidance: only goes with --pipeline"),
        (SCHEDULE, "--size", "8x8", "--size: only goes with --pipeline"),
        (SCHEDULE, "--call", "a=1", "--call: only goes with --pipeline"),
        (SCHEDULE, "--dtype", "float16", "--dtype: only goes with --pipeline"),
        (SCHEDULE, "--shape", "3x8x8", "--shape: 3x8x8, but net is for 1x8x8; that, or none"),
        (SCHEDULE, "--config", "cifar10", "net: a folder, whose card says all, with config"),
        (SCHEDULE, "--raw-weights", None, "net: a folder, whose card says all, with use_ema"),
        (VELOCITY, "--config", "cifar10", "--config: only goes with --checkpoint"),
        (VELOCITY, "--raw-weights", None, "--raw-weights: only goes with --checkpoint"),
        (VELOCITY, "--guidance", "4", "--guidance: only goes with --pipeline"),
        (PIPELINE, "--config", "cifar10", "--config: only goes with --checkpoint"),
        (PIPELINE, "--shape", "3x8x8", "--shape: only goes with --velocity"),
    ],
)
def test_options_of_another_kind_of_network_are_not_passed_over(
    folder, network: dict[str, str], option: str, value: str | None, says: str
) -> None:
    arguments = [part for pair in (network | {option: value}).items() for part in pair if part]
    code, _, err = folder("schedule", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {says}")


def test_weights_in_place_of_a_pickle_and_the_other_way_round(folder) -> None:
    save_file({"a": torch.zeros(2)}, "w.safetensors")
    torch.save({"model": {}, "ema": {}}, "c.pth")
    for path in ("w.safetensors", "c.pth", "binary", "picture.png", "cost.npz", "steps.json"):
        refused(folder, "schedule", {**SCHEDULE, "--checkpoint": path})
        for config in (*PATHS, "cifar10", "steps.json", ""):
            given = {**SCHEDULE, "--checkpoint": path, "--config": config}
            assert refused(folder, "schedule", given).count("\n") == 1
    Path("broken").mkdir()
    for card in (b"", b"\xff\xfe", b"[]", b"{}", b"[" * 10**5, json.dumps({"config": 1}).encode()):
        Path("broken/card.json").write_bytes(card)
        save_file({"a": torch.zeros(2)}, "broken/model.safetensors")
        assert refused(folder, "sample", {**SAMPLE, "--checkpoint": "broken"}).count("\n") == 1
        assert refused(folder, "export", {**EXPORT, "": "broken"}).count("\n") == 1


def test_a_picture_of_what_is_not_finite_is_refused(folder) -> None:
    torch.manual_seed(0)
    network = UNet(CONFIG)
    torch.nn.init.constant_(network.last.bias, 1e38)
    torch.nn.init.constant_(network.last.weight, 3e38)
    save_checkpoint(Path("explodes"), network, schedule=STEPS)
    err = refused(folder, "sample", {**SAMPLE, "--checkpoint": "explodes"})
    assert "velocity: samples 0 to 0 are not finite at t = 1" in err


def test_a_folder_that_is_read_only(folder) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    Path("folder").chmod(0o500)
    assert "cannot be written to" in refused(folder, "schedule", {**SCHEDULE, "--out": "folder/a"})


def test_devices_that_are_there_and_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused_for(says: str, *given: str, **needs: bool) -> None:
        for name in given:
            with pytest.raises(InputError, match=says):
                choose_device(name, **needs)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    refused_for("but torch finds no GPU; auto or cpu needed", "cuda", "cuda:0", "cuda:1")
    refused_for("--device: mps, but torch finds none; auto or cpu needed", "mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    refused_for("--device: cuda:2; one of cuda:0 to cuda:1 needed", "cuda:2")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")
    refused_for("mps has no float64, in which costs are summed; cpu needed", "mps", float64=True)
