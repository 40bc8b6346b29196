"""The one exception for mistakes that a user can mend."""


class InputError(ValueError):
    """Bad input: the message is one line that names the file or parameter, the value found
    and what would be right. Command lines print it without a traceback and exit with 2.

    Names and values come from files and command lines, and may hold anything: what would begin
    another line, or is no text that a terminal can show, stands there as Python escapes it."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(map(_shown, message)))


def _shown(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def lacks_memory(error: BaseException) -> bool:
    """Whether an error is for want of memory: torch's own say so, each in its way. Nothing that was
    tried can be concluded from one."""
    said = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch takes a second to import
        or "not enough memory: you tried to allocate" in said
        or "can't allocate memory" in said
    )
