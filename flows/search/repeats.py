"""What diffusers and transformers say again at every call, said once."""

import logging

_LONGEST = 240


class _Once(logging.Filter):
    """Lets a message through the first time that its beginning is seen, and cuts it short: some
    repeat every prompt of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = " ".join(record.getMessage().split())
        if text[:60] in self.seen:
            return False
        self.seen.add(text[:60])
        record.msg, record.args = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ...", ()
        return True


def say_once() -> None:
    """For this process, from here on. Both libraries have to be loaded already."""
    for library in ("diffusers", "transformers"):
        for handler in logging.getLogger(library).handlers:
            if not any(isinstance(each, _Once) for each in handler.filters):
                handler.addFilter(_Once())
