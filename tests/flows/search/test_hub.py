"""A pipeline by its name on the hub: huggingface_hub itself fetches it from a server on loopback,
makes its cache, and says what is wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from flows.search.pipeline_loading import load_pipeline
from tests.helpers import tiny_pipelines
from tests.helpers.hub_server import Hub, hub_server

FIRST, SECOND = "a" * 40, "b" * 40
# Names in turn, on and off the network, in one process: huggingface_hub reads its address once.
LOAD = """
import json, shutil, sys
from pathlib import Path
import torch
from huggingface_hub import constants
from boss_core.errors import InputError
from flows.search.hub import on_hub
from flows.search.pipeline_loading import load_pipeline
found = []
for name, offline in json.loads(sys.argv[1]):
    constants.HF_HUB_OFFLINE = offline
    try:
        weights = load_pipeline(name, "float32", torch.device("cpu"))[1]
        found.append([weights, on_hub(name).revision, on_hub(name).kind])
    except InputError as error:
        found.append(str(error))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    tiny_pipelines.sd3_with_text(folder / "sd3")
    (folder / "text").mkdir()
    (folder / "text/config.json").write_text("{}")
    with hub_server() as hub:
        hub.publish("someone/tiny", folder / "sd3", FIRST)
        hub.publish("someone/text", folder / "text", FIRST)
        yield hub


def loaded(hub: Hub, cache: Path, names: list[tuple[str, bool]]) -> list[Any]:
    env = os.environ | {"HF_HOME": str(cache), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": ""}
    command = [sys.executable, "-c", LOAD, json.dumps(names)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def wrong(hub: Hub, cache: Path) -> list[tuple[str, bool, str]]:
    """Names, whether they are asked for offline, and what is said."""
    return [
        ("nobody/typo", False, "no such folder, and not on the hub, or private there; its name as"
         " the hub has it, or a login that may (`hf auth login`, or HF_TOKEN), needed"),
        ("someone/gated", False, "for those who agreed to its terms; that, on"
         f" {hub.url}/someone/gated, and a login that may (`hf auth login`, or HF_TOKEN), needed"),
        ("someone/text", False, "has no model_index.json, and so is no pipeline of diffusers; one"
         " that is needed"),
        ("someone/tiny@v2", False, "someone/tiny has no revision v2 on the hub; a commit, branch or"
         " tag of it needed"),
        ("./sd3", False, "no such folder, and no name on the hub; a folder that save_pretrained"
         " wrote, or owner/name, needed"),
        ("someone/other", True, f"no such folder, and not in the cache, {cache}/hub, while"
         " HF_HUB_OFFLINE is set; `hf download someone/other` where there is a network, or a"
         " folder, needed"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def found(hub: Hub, cache: Path) -> list[Any]:
    """What loading the wrong names said, and what the right one gave, last without a network."""
    names = [case[:2] for case in wrong(hub, cache)]
    return loaded(hub, cache, [*names, ("someone/tiny", False), ("someone/tiny", True)])


def test_a_name_is_what_its_folder_is_with_a_network_and_without(
    hub: Hub, cache: Path, found: list[Any]
) -> None:
    folder = str(hub.folders["someone/tiny"])
    weights = load_pipeline(folder, "float32", torch.device("cpu"))[1]
    assert found[-2:] == [[weights, FIRST, "StableDiffusion3Pipeline"]] * 2
    assert (cache / "hub/models--someone--tiny/refs/main").read_text() == FIRST


def test_what_is_wrong_with_a_name_is_said_in_a_line(
    hub: Hub, cache: Path, found: list[Any]
) -> None:
    for (name, _, says), said in zip(wrong(hub, cache), found[:-2], strict=True):
        assert said == f"--pipeline: {name}: {says}"


@pytest.mark.slow
@pytest.mark.usefixtures("found")
def test_a_name_goes_on_with_the_hub_and_a_revision_stays(hub: Hub, cache: Path) -> None:
    name, pinned = "someone/tiny", f"someone/tiny@{FIRST}"
    hub.publish(name, hub.folders[name], SECOND)
    asked = [(name, True), (name, False), (name, True), (pinned, True), (pinned, False)]
    there = [revision for _, revision, _ in loaded(hub, cache, asked)]
    assert there == [FIRST, SECOND, SECOND, FIRST, FIRST]
