"""The weights of the Inception network, which a user brings along."""

from pathlib import Path

from boss_core.errors import InputError


def inception_weights(folder: Path) -> Path:
    """The one weights file in the folder."""
    found = sorted(folder.glob("*.pth"))
    if len(found) != 1:
        raise InputError(
            f"{folder}: {len(found)} .pth files; exactly one, the Inception weights of"
            " torch-fidelity, needed for inception as features.extractor or in evaluate.judges"
        )
    return found[0]
