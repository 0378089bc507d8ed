"""The base of every error that is a user's to mend; anything else that escapes is a bug."""

from __future__ import annotations


class FpjaxError(Exception):
    """Something was misused, missing or damaged; the message says what to do.

    >>> issubclass(InputError, FpjaxError)
    True
    """


class InputError(FpjaxError, ValueError):
    """An argument that does not fit: the message says what was given and what is expected.

    >>> issubclass(InputError, FpjaxError) and issubclass(InputError, ValueError)
    True
    """
