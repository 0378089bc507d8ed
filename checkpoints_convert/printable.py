"""Names of strangers' files on a terminal: one line, and nothing that could steer it."""

from fpjax.io.text import printable as text_of_strangers

NAME_CHARACTERS = 200


def printable(text: object, limit: int = 4096) -> str:
    """Text in which a line break, ESC and everything else that does not print is escaped.

    Args:
        text: anything; its text is taken as it is, so it must not be a large value of a file (see
            `describe` for those).
        limit: characters that are kept of it.

    >>> print(printable("a\\nverified: all \\x1b[2J"))
    a\\nverified: all \\x1b[2J
    """
    line = str(text)
    return text_of_strangers(line if len(line) <= limit else line[:limit] + "...")


def name(text: str) -> str:
    """A tensor's name in a message: printable, and no longer than a name can be.

    >>> name("a" * 1000) == "a" * 200 + "..."
    True
    """
    return printable(text, NAME_CHARACTERS)


def names(texts, shown: int = 10) -> str:
    """The first of several names, and how many more there are.

    >>> names(["a", "b", "c"], shown=2)
    'a, b and 1 more'
    """
    texts = list(texts)
    more = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return ", ".join(name(text) for text in texts[:shown]) + more
