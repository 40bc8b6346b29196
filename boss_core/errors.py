"""The one exception for mistakes that a user can mend."""


class InputError(ValueError):
    """Bad input: the message is one line that names the file or parameter, the value found
    and what would be right. Command lines print it without a traceback and exit with 2."""
