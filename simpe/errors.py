"""Errors that are the user's to mend."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input by the user: a file or an option.

    The message is one line that names the file or option and says what to do; the command line prints it and
    exits with code 2. It never holds a private value.
    """

    def __init__(self, message: str):
        # A file name may hold line breaks or terminal escapes, and it stands in most messages.
        super().__init__("".join(c if c.isprintable() else "?" for c in message))
