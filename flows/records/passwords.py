"""Addresses as anyone may see them."""

import re


def without_password(text: str) -> str:
    """Every address in a text with asterisks for its password, as anyone may see it. Up to the last
    @, as a password need not be escaped to be taken by a database's driver."""
    text = re.sub(r"(://[^:@/\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s]*", r"\1***", text)
