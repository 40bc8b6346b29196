"""README and docs: their Python runs as it stands there, and what they name is there."""

import ast
import importlib
import pickle
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.core import TyperGroup

import boss_core
from boss_core.networks.edm import EDM, EDMConfig
from flows.cli.app import app
from tests.helpers.checkout import ROOT
from tests.helpers.edm import NCSNPP
from tests.helpers.project import Project

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md")),
]
# Run where the small networks are that they need: the test, by page.
RUN_ELSEWHERE = {
    "docs/export.md": "tests/boss_core/interop/test_export.py::test_the_documented_blocks_run",
    "docs/pipeline.md": "tests/flows/tracking/test_models.py"
    "::test_a_student_that_is_loaded_elsewhere_samples_the_same_pictures",
    "docs/teachers/diffusers.md": "tests/boss_core/interop/test_diffusers_pipelines.py"
    "::test_the_walk_through_runs",
    "docs/tutorials/diffusers-pipeline.md": "tests/flows/straighten/test_tutorial.py"
    "::test_the_page_runs_as_it_stands",
    "docs/tutorials/digits.md": "tests/system/test_tutorials.py::test_digits",
    "docs/tutorials/your-photographs.md": "tests/system/test_tutorials.py::test_your_photographs",
    "docs/teachers/rectified-flow.md": "tests/boss_core/checkpoints/test_rectified_flow.py"
    "::test_the_page_runs_as_it_stands",
}
# Compiled, and what they import is imported, but not run: the reason, by page.
NOT_RUN = {"docs/results/cifar10.md": "downloads CIFAR-10, 170 MB"}
# What was: names and files that have gone since.
HISTORY = ("docs/log.md",)
# Files that a user makes.
OF_USERS = ("docker/.env", "docs/results/NAME.md")

# Fenced blocks, and scripts that a shell block hands to Python.
PYTHON = re.compile(
    r"^```python(?: title=\"[\w.]+\")?\n(.*?)^```$|^python - <<'EOF'\n(.*?)^EOF$",
    flags=re.MULTILINE | re.DOTALL,
)


def read(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str) -> list[str]:
    return [fenced or script for fenced, script in PYTHON.findall(read(page))]


def run(page: str, names: dict[str, object]) -> dict[str, object]:
    """What the blocks of a page leave behind, run in order."""
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)
    return names


def imports(block: str) -> list[ast.stmt]:
    return [
        node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import | ast.ImportFrom)
    ]


WITH_PYTHON = [page for page in PAGES if blocks(page)]


def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a straight flow to one image, which any steps follow."""
    monkeypatch.chdir(tmp_path)

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (0.5 - x) / (1.001 - t).view(-1, 1, 1, 1)

    names = run("README.md", {"velocity": velocity})
    samples = names["samples"]
    assert isinstance(samples, torch.Tensor)
    assert samples.shape == (100, 3, 32, 32)
    assert float((samples - 0.5).abs().max()) < 0.02


def test_other() -> None:
    torch.manual_seed(0)
    names = run("docs/teachers/other.md", {})
    assert names["samples"].isfinite().all()  # type: ignore[attr-defined]
    assert sum(names["after"]) < 0.9 * sum(names["before"])  # type: ignore[call-overload]


def test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is made by the line above the script."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inputs/mine").mkdir(parents=True)
    run("docs/data.md", {})
    assert {path.name for path in tmp_path.glob("inputs/mine/*")} == {"images.npy", "labels.npy"}


def test_your_network(boss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The first block is the user's module, the others use it; then the command does the same."""
    page = "docs/tutorials/your-network.md"
    monkeypatch.syspath_prepend(tmp_path)
    module, *rest = blocks(page)
    (tmp_path / "my_code.py").write_text(module)
    names: dict[str, object] = {}
    for block in rest:
        exec(compile(block, page, "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    numbers = [float(n) for line in printed for n in re.findall(r"[0-9]\.[0-9]+", line)]
    shown = re.findall(r"^(?:100 steps|squared distance) .*$", read(page), flags=re.MULTILINE)
    expected = [float(n) for line in shown for n in re.findall(r"[0-9]\.[0-9]+", line)]
    assert len(expected) == 5
    assert numbers == pytest.approx(expected, rel=0.15)  # of training, which rounds as its machine
    assert numbers[:2] == pytest.approx(expected[:2], rel=0.02)
    assert 8 * numbers[4] < numbers[3]
    sys.modules.pop("my_code")
    lines = [line.split()[1:] for line in commands(page) if " --" in line]
    command, export = (line for line in lines if line[0] != "sample")  # here no samples are images
    code, said, _ = boss(*command, "--device", "cpu")
    assert code == 0
    assert re.search(r"│ 2 │  euler │ +0\.[0-9]+ │ +0\.3[0-9]+ │ +0\.0[0-9]+ │", said)
    assert boss(*export)[0] == 0


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


CONSOLE = re.compile(
    r"^```console\n(?:# params.yaml: (.+): (.+)\n)?\$ (.+)\n(error: .+)\n```$", flags=re.MULTILINE
)
ERRORS = "docs/troubleshooting.md"


@pytest.mark.parametrize("shown", CONSOLE.findall(read(ERRORS)), ids=lambda shown: shown[3][7:50])
def test_errors_are_printed_as_they_are_shown(
    shown: tuple[str, ...], boss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, value, command, line = shown
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_code", raising=False)
    (tmp_path / "my_code.py").write_text(blocks(ERRORS)[0])
    if key:
        project = Project.bare(tmp_path)
        project.set({key: value})
    code, _, errors = boss(*shlex.split(command)[1:])
    assert (code, errors.strip().splitlines()[-1]) == (2, line)


def test_errors_of_machines_are_in_the_code() -> None:
    """Of those that cannot be had here, the words between the numbers."""
    source = "".join(
        path.read_text() for package in ("boss_core", "flows") for path in
        sorted((ROOT / package).rglob("*.py"))
    )  # fmt: skip
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    rows = re.findall(r"^\| `([^`]+)` \|", read(ERRORS), flags=re.MULTILINE)
    assert len(rows) + len(CONSOLE.findall(read(ERRORS))) >= 20
    for words in rows:
        assert words in joined, words


def test_edm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    published = Published()
    (tmp_path / "network.pkl").write_bytes(pickle.dumps({"ema": published}))
    monkeypatch.setattr(sys, "argv", ["convert_edm.py", "network.pkl", "inputs/teacher"])
    names: dict[str, object] = {}
    first, convert, load = blocks("docs/teachers/edm.md")
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


def test_every_page_with_python_is_run() -> None:
    here = {
        "README.md", "docs/data.md", "docs/teachers/edm.md", "docs/teachers/other.md",
        "docs/troubleshooting.md", "docs/tutorials/your-network.md",
    }  # fmt: skip
    assert set(WITH_PYTHON) == here | set(RUN_ELSEWHERE) | set(NOT_RUN)
    for page, test in RUN_ELSEWHERE.items():
        path, _, name = test.partition("::")
        source = read(path)
        assert f"def {name}(" in source, test
        assert Path(page).name in source, f"{path} no longer reads {page}"


@pytest.mark.parametrize("page", NOT_RUN)
def test_what_is_not_run_could_be(page: str) -> None:
    for block in blocks(page):
        compile(block, page, "exec")
        for node in imports(block):
            exec(compile(ast.Module([node], []), page, "exec"))


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_uses_the_public_names(page: str) -> None:
    for block in blocks(page):
        for node in imports(block):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("boss_core."):
                public = {alias.name for alias in node.names} & set(boss_core.__all__)
                assert not public, f"{page}: {sorted(public)} from {node.module}, not boss_core"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in HISTORY])
def test_names_of_the_code_are_there(page: str) -> None:
    """`boss_core.ode.solvers.euler`, `tests/system/test_docs.py`, `python -m benchmarks.gpu`."""
    text = read(page)
    for name in set(re.findall(r"\b(?:boss_core|flows|benchmarks|studies)(?:\.\w+)+", text)):
        if not name.endswith((".py", ".md", ".yaml", ".json")):
            assert is_there(name), f"{page}: {name}"
    files = r"(?<![\w/.])((?:boss_core|flows|tests|benchmarks|studies|docs|docker)/[\w./-]*\w/?)"
    for path in set(re.findall(files, text)) - set(OF_USERS):
        assert (ROOT / path).exists(), f"{page}: {path}"
    for path, test in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text):
        assert f"def {test}(" in read(path), f"{page}: {path}::{test}"


@pytest.mark.parametrize("package", ["boss_core", "flows"])
def test_the_map_in_the_readme_has_every_folder(package: str) -> None:
    shown = read("README.md").partition("## Where things are\n")[2].split()
    folders = {f"{path.parent.name}/" for path in ROOT.glob(f"{package}/*/__init__.py")}
    assert folders <= set(shown)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in HISTORY])
def test_commands_take_the_options_that_they_are_shown_with(page: str) -> None:
    known = typer.main.get_command(app)
    assert isinstance(known, TyperGroup)
    for line in commands(page):
        name, *words = line.partition("  #")[0].split()[1:]
        assert name in known.commands, f"{page}: boss {name}"
        options = {option for p in known.commands[name].params for option in p.opts}
        shown = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert shown <= options, f"{page}: boss {name} has no {sorted(shown - options)}"


def commands(page: str) -> list[str]:
    """The calls of `boss` on a page: lines of code, and code within a sentence."""
    lines = re.findall(r"^(?: {4})?(boss [a-z].*)$", read(page), flags=re.MULTILINE)
    within = re.findall(r"`(boss\s[a-z][^`]*)`", read(page))
    return [call for line in [*lines, *within] for call in line.split("; ")]


def is_there(name: str) -> bool:
    """Whether a dotted name leads to a module, or to something in one."""
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:depth]))
        except ModuleNotFoundError:
            continue
        for part in parts[depth:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(linked.read_text()), f"{page}: {target}"


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
