"""Presets whose data is not here: on a few images in the same files."""

from pathlib import Path

import numpy as np
import pytest

from boss_core.errors import InputError
from flows.config import load_params
from flows.records.record import read_record
from flows.stages import check
from flows.workspace.presets import read_preset
from tests.helpers.checkout import ROOT
from tests.helpers.data_sets import write_cifar10
from tests.helpers.project import FEWER, Project
from tests.helpers.stages import run_until_evaluated


@pytest.mark.slow
def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 images in CIFAR-10's own files. The network and the images fit together as the preset
    has them; what is trained is the U-Net of `smoke`."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="not installed (pip install .[judges])")
    project = Project.bare(tmp_path)
    monkeypatch.chdir(tmp_path)
    preset = read_preset(ROOT, "cifar10")
    (tmp_path / "studies/cifar10").mkdir(parents=True)
    (tmp_path / preset["teacher.config"]).write_bytes(
        (ROOT / preset["teacher.config"]).read_bytes()
    )
    draw = np.random.default_rng(0)
    images = draw.integers(256, size=(60, 3, 32, 32), dtype=np.uint8)
    write_cifar10(tmp_path / preset["data.path"], images, np.resize(np.arange(10), 60), monkeypatch)
    project.set(preset)
    with pytest.raises(InputError, match="reference_samples: 50000, but 51 of the 60 images"):
        check.check(load_params())  # the last that is amiss
    fewer = {name: FEWER[name] for name in FEWER if name.startswith("evaluate.")}
    project.set(fewer)
    found = check.check(load_params())
    assert found is not None
    assert (found.count, found.kinds, found.shape) == (60, 10, (3, 32, 32))

    project.set(read_preset(ROOT, "smoke") | FEWER)
    params = load_params()
    run_until_evaluated(params)
    record = read_record(2)
    assert record["extractor"] == "efficientnet_lite0"
    assert {
        "straightened_uniform",
        "boss",
        "boss_lora",
        "chosen_uniform",
        "chosen",
    } <= record.keys()
    assert record["chosen_solver"] == "multistep"
    assert "chosen_straightened" not in record
