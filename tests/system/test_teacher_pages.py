"""The Python of the pages about teachers runs as it stands there."""

import pickle
import re
import sys
from pathlib import Path

import pytest
import torch

from boss_core.networks.edm import EDM, EDMConfig
from tests.helpers.checkout import ROOT
from tests.helpers.edm import NCSNPP


def blocks(page: str) -> list[str]:
    text = (ROOT / "docs/teachers" / page).read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_other() -> None:
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for block in blocks("other.md"):
        exec(block, names)
    assert names["samples"].isfinite().all()  # type: ignore[attr-defined]


class Published(torch.nn.Module):
    """What the conversion uses of a published network; its classes are not here."""

    def __init__(self) -> None:
        super().__init__()
        self.network = EDM(EDMConfig.model_validate({**NCSNPP, "label_dim": 4}))
        self.init_kwargs = {**NCSNPP, "dropout": 0.13, "use_fp16": False, "augment_dim": 9}
        self.img_resolution, self.img_channels, self.label_dim = 8, 3, 4
        self.sigma_data = 0.5

    def state_dict(self, *args, **kwargs):
        weights = self.network.state_dict(*args, **kwargs)
        return {**weights, "model.map_augment.weight": torch.zeros(32, 9)}

    def forward(self, x, sigma, class_labels):
        return self.network.denoise(x, sigma, class_labels.argmax(dim=1))


def test_edm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    published = Published()
    (tmp_path / "network.pkl").write_bytes(pickle.dumps({"ema": published}))
    monkeypatch.setattr(sys, "argv", ["convert_edm.py", "network.pkl", "inputs/teacher"])
    names: dict[str, object] = {}
    first, convert, load = blocks("edm.md")
    exec(first, names)
    exec(convert, dict(names))
    with pytest.raises(Exception, match="labels: none"):  # the example is unconditional
        exec(load, names)
    labels = torch.tensor([0, 1])
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.0, 0.7])
    network = names["network"]
    assert isinstance(network, EDM)
    assert torch.equal(network(x, t, labels), published.network.eval()(x, t, labels))

    # Another preconditioning gives other outputs, which the script notices.
    monkeypatch.setattr(Published, "forward", lambda self, x, sigma, labels: x)
    monkeypatch.setattr(sys, "argv", ["convert_edm.py", "network.pkl", "elsewhere"])
    with pytest.raises(SystemExit, match="the converted network differs from it by"):
        exec(convert, dict(names))
    assert not (tmp_path / "elsewhere").exists()
