"""Code and weights of the user's own behind ``--velocity``: what changes them is another search."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from boss_core.checkpoints.code_hash import source_files
from boss_core.checkpoints.folder import save_checkpoint
from boss_core.checkpoints.load import import_velocity
from boss_core.errors import InputError
from boss_core.networks.unet import UNet
from tests.helpers.unet import CONFIG

FILES = {
    "mine.py": """
import dataclasses
import functools
import threading
import types
from collections import deque
import numpy as np
import torch
from parts.layers import Net
import scale

net = Net()
bound = functools.partial(net.forward, label=1)

def velocity(x, t):
    return net(x, t)

def other(x, t):
    return net(x, t)

def closed(strength):
    return lambda x, t: strength * x

weak = closed(torch.tensor(0.5))

class Called:
    def __init__(self):
        self.guidance = 3.0
    def __call__(self, x, t):
        from parts import late
        return self.guidance * late.late(x)

called = Called()

@dataclasses.dataclass(slots=True)
class Kept:
    power: torch.Tensor

kept, marked, single = Kept(torch.tensor(2.0)), {0.25, 0.5}, np.float32(0.5)

@functools.lru_cache
def looked_up(name):
    return net.strength

def through(x, t):
    return looked_up("a") * x ** kept.power * sum(marked) * single

factor, tuned = torch.tensor(2.0), types.SimpleNamespace(power=torch.tensor(1.0))

def helped(x):
    return factor * x

class Base:
    scale = 1.0
    table = [1.0, 2.0]

class Reaching(Base):
    def __call__(self, x, t):
        return self.through(helped(x)) * self.still(x) * self.late
    def through(self, x):
        return net(x, None)
    @staticmethod
    def still(x, by=deque([1.0])):
        return by[0] * x ** tuned.power
    @property
    def late(self):
        return chosen.level

class Chosen:
    level = 0.5

chosen, reaching = Chosen, Reaching()

class Private(torch.nn.Module):
    gain = 1.0
    def __init__(self):
        super().__init__()
        self._scale = 1.0
        self.kept = torch.nn.Linear(1, 1)
        self.kept._shift = 1.0
        torch.nn.init.ones_(self.kept.weight)
        torch.nn.init.ones_(self.kept.bias)
    def get_extra_state(self):
        return {"steps": 3, "lock": threading.Lock()}
    def set_extra_state(self, state):
        pass
    def forward(self, x, t):
        return helped(x) * self._scale * self.gain

private = Private()
compiled = torch.compile(private)
arranged = functools.partial(private, odd=np.array([1, "a", threading.Lock()], dtype=object))

def marked_by(x, t):
    return x * marked_by.scale

marked_by.scale = 1.0

class WithoutArguments:
    def __call__(self):
        pass
""",
    "scale.py": "FACTOR = 2.0\n",
    "unrelated.py": "X = 1\n",
    "parts/__init__.py": "",
    "parts/late.py": "def late(x):\n    return -x\n",
    "parts/layers.py": """
import torch
from . import inner
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.ones(2))
        self.b = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(self.b.weight)
        torch.nn.init.ones_(self.b.bias)
        self.strength = 1.0
    def forward(self, x, t, label=0):
        return inner.turned(self.b(x)) * self.a
""",
    "parts/inner.py": "def turned(x):\n    return x.flip(-1)\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # A file that is rewritten within a second would be taken from its cached code.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def fresh(name: str) -> str | None:
    """The hash after a new start of Python, as far as these modules go."""
    for module in ("mine", "scale", "parts", "parts.layers", "parts.inner", "parts.late"):
        sys.modules.pop(module, None)
    importlib.invalidate_caches()
    return import_velocity(name, (2,)).hash


@pytest.mark.parametrize("attribute", ["net", "velocity", "bound", "weak", "called"])
@pytest.mark.parametrize("change", [name for name in FILES if name != "unrelated.py"])
def test_code_that_has_changed_has_another_hash(folder, attribute: str, change: str) -> None:
    before = fresh(f"mine:{attribute}")
    assert before is not None
    assert fresh(f"mine:{attribute}") == before
    Path("unrelated.py").write_text("X = 2\n")
    assert fresh(f"mine:{attribute}") == before
    path = Path(change)
    path.write_text(path.read_text() + "\nX = 3\n")
    assert fresh(f"mine:{attribute}") != before


@pytest.mark.parametrize(
    ("attribute", "line"),
    [
        ("net", "net.b.weight.data[0, 0] = 1.5"),
        ("velocity", "net.b.weight.data[0, 0] = 1.5"),
        ("velocity", "net.strength = 2.0"),
        ("bound", "net.a.data[1] = 0"),
        ("weak", "weak.__closure__[0].cell_contents.fill_(2)"),
        ("called", "called.guidance = 4.0"),
        ("through", "net.strength = 2.0"),
        ("through", "kept.power.fill_(3)"),
        ("through", "marked.add(0.75)"),
        ("through", "single = np.float32(0.75)"),
        ("reaching", "factor.fill_(3)"),
        ("reaching", "net.strength = 2.0"),
        ("reaching", "Base.scale = 2.0"),
        ("reaching", "Base.table[1] = 3.0"),
        ("reaching", "Reaching.still.__defaults__[0][0] = 2.0"),
        ("reaching", "tuned.power.fill_(2)"),
        ("reaching", "Chosen.level = 0.25"),
        ("private", "factor.fill_(3)"),
        ("private", "Private.gain = 2.0"),
        ("private", "private._scale = 2.0"),
        ("private", "private.kept._shift = 2.0"),
        ("private", "Private.get_extra_state = lambda self: {'steps': 4}"),
        ("private", "private.register_forward_hook(lambda m, i, o, by=2: by * o)"),
        ("compiled", "private._scale = 2.0"),
        ("arranged", "arranged.keywords['odd'][0] = 2"),
        ("marked_by", "marked_by.scale = 2.0"),
    ],
)
def test_weights_and_settings_that_have_changed_have_another_hash(
    folder, attribute: str, line: str
) -> None:
    path = Path("mine.py")
    switch = "import os\nif os.path.exists('changed'):\n    "
    path.write_text(path.read_text() + switch + line + "\n")
    before = fresh(f"mine:{attribute}")
    Path("changed").touch()
    assert fresh(f"mine:{attribute}") != before


def test_two_functions_of_one_file_are_two_searches(folder) -> None:
    assert fresh("mine:velocity") != fresh("mine:other")


def test_another_process_finds_the_same_hash(folder) -> None:
    names = ("net", "velocity", "called", "weak", "through", "reaching", "private", "compiled")
    code = (
        "from boss_core.checkpoints.load import import_velocity as v\n"
        f"print(*(v(f'mine:{{a}}', (2,)).hash for a in {names}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [fresh(f"mine:{a}") for a in names]


def test_packages_of_the_system_and_in_a_shared_store_are_no_code_of_the_users(
    folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an environment with the system's packages, or one of links, has them: nothing in them, of
    torch least of all, belongs to the user's network."""
    store, system = folder / "store", folder / "system" / "dist-packages"
    (store / "linked").mkdir(parents=True)
    system.mkdir(parents=True)
    (system / "plain.py").write_text("x = 1\n")
    (store / "linked" / "__init__.py").write_text("x = 1\n")
    (system / "linked").symlink_to(store / "linked")
    monkeypatch.syspath_prepend(str(system))
    monkeypatch.syspath_prepend(str(folder))
    Path("uses.py").write_text(
        "import linked, plain, scale\ndef v(x, t):\n    return linked.x * plain.x * x\n"
    )
    module = importlib.import_module("uses")
    assert source_files(module) == [folder / "uses.py", folder / "scale.py"]


def test_a_network_of_this_project_has_the_hash_of_its_card(folder) -> None:
    card = save_checkpoint(Path("net"), UNet(CONFIG))
    Path("ours.py").write_text(
        "from pathlib import Path\nfrom boss_core.checkpoints.folder import load_checkpoint\n"
        "net, _ = load_checkpoint(Path('net'))\n"
    )
    assert import_velocity("ours:net", (1, 8, 8)).hash == card.weights_sha256


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def v(x t):\n    pass\n", r"velocity: 'bad:v': .*bad\.py:1: SyntaxError: "),
        ("v = nothing\n", r"velocity: 'bad:v': .*bad\.py:1: NameError: name 'nothing'"),
        ("import nothing_there\n", r"bad\.py:1: ModuleNotFoundError: No module named 'nothing_th"),
        ("class v:\n    def __call__(self, x, t):\n        pass\n", "'bad:v' is a class; an inst"),
        ("def v(x):\n    pass\n", r"velocity: 'bad:v' takes \(x\); \(x, t\) needed"),
        ("def v(x, t, labels):\n    pass\n", r"takes \(x, t, labels\); \(x, t\) needed"),
        ("v = None\n", "'bad:v' is a NoneType; v"),
        ("import sys\nsys.exit(3)\n", r"bad\.py:2: ends Python when it is imported; that guarded"),
        (
            "import argparse\nargparse.ArgumentParser().parse_args(['--x'])\n",
            r"bad\.py:2: ends Python when it is imported; that guarded by if __name__ ",
        ),
    ],
)
def test_what_cannot_be_imported_as_a_velocity_is_one_line(folder, text: str, says: str) -> None:
    sys.modules.pop("bad", None)
    Path("bad.py").write_text(text)
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=says) as refused:
        import_velocity("bad:v", (2,))
    assert "\n" not in str(refused.value)


def test_what_has_no_source_has_no_hash(folder) -> None:
    assert import_velocity("_operator:mul", (2,)).hash is None


def test_a_search_is_not_gone_on_from_with_other_code(boss) -> None:
    text = "import torch\ndef v(x, t):\n    return torch.sin(3 * x + t.view(-1, 1))\n"
    options = ["--shape", 2, "--grid", 6, "--samples", 4, "--budget", 2]
    sys.modules.pop("flowing", None)
    Path("flowing.py").write_text(text)
    assert boss("schedule", "--velocity", "flowing:v", *options)[0] == 0
    costs = Path("schedules/cost.npz").read_bytes()
    sys.modules.pop("flowing", None)
    Path("flowing.py").write_text(text.replace("sin", "cos") + "\n# other code\n")
    code, _, err = boss("schedule", "--velocity", "flowing:v", *options)
    assert code == 2
    assert "schedules/cost.npz: the costs of another search: teacher_hash is " in err
    assert Path("schedules/cost.npz").read_bytes() == costs

    # Compiled code is nobody's Python source; one state and one time can be multiplied.
    options = [*options[2:], "--shape", 1, "--batch-size", 1, "--out", "plain"]
    for _ in range(2):
        code, out, _ = boss("schedule", "--velocity", "_operator:mul", *options)
    assert code == 0
    assert "search: this velocity has no Python source to know it again by: if it has" in out


def test_a_scripted_network_is_known_by_its_code(folder) -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return 2 * x

    class Thrice(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return 3 * x

    Path("loads.py").write_text("import torch\nnet = torch.jit.load('net.pt')\n")
    found = []
    for network in (Twice(), Thrice(), Twice()):
        x, t = torch.ones(2, 2), torch.ones(2)
        torch.jit.trace(network, (x, t)).save("net.pt")
        sys.modules.pop("loads", None)
        importlib.invalidate_caches()
        found.append(import_velocity("loads:net", (2,)).hash)
    assert found[0] == found[2] != found[1]
