"""A pipeline by its name on the Hugging Face hub: what the name stands for now."""

import json
from dataclasses import dataclass
from pathlib import Path

from boss_core.errors import InputError

INDEX = "model_index.json"
OPTION = "--pipeline"


@dataclass(frozen=True)
class OnHub:
    """name: the repository. revision: its commit. kind: the class of its pipeline."""

    name: str
    revision: str
    kind: str


def on_hub(source: str, where: str = OPTION) -> OnHub:
    """What ``owner/name`` stands for, or ``owner/name@revision``: of its newest commit; without a
    network, or with HF_HUB_OFFLINE, the one that the cache had last. Fetches one small file.

    InputError, in a line, for what is not there or not for everybody. where: who named it."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = source.partition("@")
    # An option may have named a folder, too.
    either = "no such folder, and " if where == OPTION else ""
    log_in = "a login that may (`hf auth login`, or HF_TOKEN)"
    try:
        path = Path(hf_hub_download(name, INDEX, revision=revision or None))
    except HFValidationError as error:
        why = f"{either}no name on the hub; a folder that save_pretrained wrote, or"
        raise InputError(f"{where}: {source}: {why} owner/name, needed") from error
    except GatedRepoError as error:
        why = f"for those who agreed to its terms; that, on {constants.ENDPOINT}/{name}, and"
        raise InputError(f"{where}: {source}: {why} {log_in}, needed") from error
    except RepositoryNotFoundError as error:
        why = f"{either}not on the hub, or private there; its name as the hub has it, or"
        raise InputError(f"{where}: {source}: {why} {log_in}, needed") from error
    except RevisionNotFoundError as error:
        why = f"{name} has no revision {revision} on the hub; a commit, branch or tag of it needed"
        raise InputError(f"{where}: {source}: {why}") from error
    except LocalEntryNotFoundError as error:
        offline = constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} cannot be reached"
        raise InputError(
            f"{where}: {source}: {either}not in the cache, {constants.HF_HUB_CACHE},"
            f" while {why}; `hf download {name}` where there is a network, or a folder, needed"
        ) from error
    except EntryNotFoundError as error:
        why = f"has no {INDEX}, and so is no pipeline of diffusers; one that is needed"
        raise InputError(f"{where}: {source}: {why}") from error
    except OSError as error:  # whatever else the hub answers
        raise InputError(f"{where}: {source}: {' '.join(str(error).split())}") from error
    return OnHub(name, path.parent.name, _kind(path, where))


def revision_of(source: str, where: str = OPTION) -> str | None:
    """The commit of a pipeline by its name on the hub; None of a folder."""
    return None if Path(source).exists() else on_hub(source, where).revision


def at_revision(source: str, revision: str | None) -> str:
    """The name of that commit; a folder as it is."""
    return source if revision is None else f"{source.partition('@')[0]}@{revision}"


def _kind(path: Path, where: str) -> str:
    try:
        return str(json.loads(path.read_text())["_class_name"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{where}: {path}: names no pipeline; one that does needed") from error
