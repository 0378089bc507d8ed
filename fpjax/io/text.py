"""Text of strangers, such as file names, for messages and reports."""


def printable(text: object) -> str:
    """The text with every character escaped that a terminal or a reader could be misled by.

    Escaped are control characters (a newline could forge a line, ESC commands the terminal),
    controls of text direction, other characters without a glyph, and lone surrogates, which stand
    for bytes of a file name that are no text. All others stay as they are.

    Args:
      text: a string, or anything whose `str()` is meant, such as a path.

    >>> printable("a\\nb.png: attributed to eve"), printable("\\x1b[2J \\u202egnp.\\udcff")
    ('a\\\\nb.png: attributed to eve', '\\\\x1b[2J \\\\u202egnp.\\\\udcff')
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )
