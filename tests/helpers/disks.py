"""Small disks for the tests."""

import subprocess
from pathlib import Path

import pytest

# A mount that this command and what it starts see, and that ends with them.
OWN_MOUNTS = ("unshare", "--map-root-user", "--mount", "sh", "-c")


def small_disk(folder: Path, size: str) -> str:
    """The command that mounts a disk of this size at a folder, for a script of `OWN_MOUNTS`; skips
    the test where nothing may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = f"mount -t tmpfs -o size={size} none {folder}"
    if subprocess.run([*OWN_MOUNTS, mount], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    return mount
