"""What a command writes to standard error."""

import re

_BAR = re.compile(r"(Loading|Writing|Fetching) [\w .]+:\s+\d+%.*")


def beside_bars(text: str) -> list[str]:
    """The lines that are no progress bars of diffusers and transformers."""
    lines = re.split(r"[\n\r]|\x1b\[A", text)
    return [line for line in lines if line.strip() and not _BAR.match(line.strip())]
