"""``python -m flows.workspace.guard PARENT COMMAND ...``: run a command that ends when its
parent is gone.

A parent that is killed cannot end what it started. The command is ended with its whole process
group, of which this process has to be the leader: `guarded` says how to start it.
"""

import contextlib
import os
import signal
import subprocess
import sys

INTERVAL = 1.0  # seconds between two looks at the parent
PATIENCE = 10.0  # seconds that the command has to end in by itself


def guarded(command: list[str]) -> list[str]:
    """The command that runs ``command`` for as long as this process lives; to be started with
    ``start_new_session=True``. Its exit code is that of the command."""
    return [sys.executable, "-m", "flows.workspace.guard", str(os.getpid()), *command]


def main(parent: int, command: list[str]) -> int:
    child = subprocess.Popen(command)
    # Whoever ends the group ends the command: this process stays to say how that went.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    ended = False
    while True:
        try:
            code = child.wait(PATIENCE if ended else INTERVAL)
            return code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            if ended:
                os.killpg(0, signal.SIGKILL)
            if os.getppid() != parent:
                ended = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
