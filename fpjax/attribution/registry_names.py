"""Names of users: what may be one, which two read alike, and which are near to a mistyped one.

A report names a user, and people act on it. So a name can be seen whole, is written in one script,
does not read like a verdict of its own, and does not look like the name of another user. The
notions are those of Unicode Technical Standard 39 (confusables, single script); its table is large
and made for every pair of scripts, and the one here holds what looks like Latin letters.
"""

from __future__ import annotations

import difflib
import re
import unicodedata

from fpjax.errors import FpjaxError

MAX_USER_LENGTH = 200

_VERDICTS = re.compile(
    r"attribut(ed|able|ion)\b|^(nobody|no one|none|null|unknown|anonymous|error)\b|^fpjax\b"
    r"|^not? (one|key|user|close|known|found|explained|registered|finite|of)\b"
    r"|:\s|:$|\d\s*/\s*\d+\s*bits|\bp\s*="
)
# Letters of Cyrillic, Greek, Armenian and others that look like Latin ones, and what else does.
_LOOKS = dict(
    zip(
        "аеорсухіјѕһԁԛԝвкмнтгьпАВЕКМНОРСТУХІЈЅԌԚԜЗЬ"
        "αονρυικητωγχΑΒΕΖΗΙΚΜΝΟΡΤΥΧϲϳ"
        "օսոհցզԱՏՕՍ"
        "ıɑɡɩʋΙǀ|1I0",
        "aeopcyxijshdqwbkmhtrbnABEKMHOPCTYXlJSGQW3b"
        "aovpuiknTwyxABEZHlKMNOPTYXcj"
        "ounhgqUSOU"
        "iagivlllllO",
        strict=True,
    )
)
_INVISIBLE = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
_INVISIBLE |= {*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
_EAST_ASIAN = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "LATIN"}


class RegistryError(FpjaxError):
    """A registry that can't be used, or an entry it refuses; the message is one line.

    >>> import fpjax
    >>> issubclass(RegistryError, fpjax.FpjaxError)
    True
    """


class UnknownUserError(RegistryError):
    """A user who holds no key.

    >>> issubclass(UnknownUserError, RegistryError)
    True
    """


def unknown_user(user: str, path: object, names: list[str]) -> UnknownUserError:
    """That nobody of this name holds a key there, and who has a similar one."""
    close = similar_names(user, names)
    hint = f"; the closest names are {', '.join(map(repr, close))}" if close else ""
    return UnknownUserError(f"{user!r} holds no key in {path}{hint}")


def revoked_key(user: str, path: object, at: str) -> RegistryError:
    """That nothing is made with this user's key any more."""
    return RegistryError(
        f"the key of {user!r} in {path} is revoked since {at}: issue a new one under another name"
    )


def check_user(user: str) -> str:
    """A user's name as it is stored: NFC, no spaces around it.

    Raises:
      RegistryError: if it is empty, longer than 200 characters, has characters that cannot be seen
        or that are other forms of common ones, mixes scripts in one name, or reads like a verdict.

    >>> check_user(" Zoe\\u0308 ") == "Zo\\u00eb"
    True
    """
    if not isinstance(user, str):
        raise TypeError(f"a user's name is text, got {type(user).__name__}")
    shown = user[:MAX_USER_LENGTH]
    for character in user:
        category = unicodedata.category(character)
        if category[0] == "C" or category in ("Zl", "Zp"):
            raise RegistryError(
                f"the user's name {shown!a} contains the control character U+{ord(character):04X}"
            )
        if ord(character) in _INVISIBLE or (character != " " and character.isspace()):
            raise RegistryError(
                f"the user's name {shown!a} contains U+{ord(character):04X}, which cannot be seen"
            )
    user = stored_form(user)
    if not user:
        raise RegistryError("the user's name is empty")
    if len(user) > MAX_USER_LENGTH:
        raise RegistryError(
            f"the user's name {user[:20]!r}... has {len(user)} characters: at most "
            f"{MAX_USER_LENGTH} are kept"
        )
    kinds = "".join(unicodedata.category(character)[0] for character in user)
    if kinds[0] == "M" or "MMMM" in kinds:
        raise RegistryError(
            f"the user's name {user!a} has marks that would be drawn over other text"
        )
    if "  " in user:
        raise RegistryError(f"the user's name {user!r} has two spaces where one can be seen")
    plain = unicodedata.normalize("NFKC", user)
    if plain != user:
        raise RegistryError(f"the user's name {user!a} has other forms of letters: write {plain!r}")
    scripts = {_script(character) for character in user} - {""}
    if len(scripts) > 1 and not scripts <= _EAST_ASIAN:
        names = " and ".join(sorted(script.title() for script in scripts))
        raise RegistryError(
            f"the user's name {user!a} mixes {names} letters, which may look alike: use one script"
        )
    if _VERDICTS.search(look(user).casefold()) or _VERDICTS.search(user.casefold()):
        raise RegistryError(f"the user's name {user!r} reads like a verdict: choose another")
    return user


def stored_form(user: str) -> str:
    """How a name is stored and looked up, whether or not it may be a new user's."""
    return unicodedata.normalize("NFC", user).strip()


def look(user: str) -> str:
    """What a name looks like: two names of one look cannot be told apart by eye.

    >>> look("Ian") == look("lan") == look("1an")
    True
    >>> look("\\u0441\\u043e\\u0441\\u043e") == look("coco")  # Cyrillic
    True
    >>> look("Ian") == look("Lan")
    False
    """
    alike = "".join(_LOOKS.get(character, character) for character in user)
    return alike.replace("rn", "m").replace("vv", "w")


def _script(character: str) -> str:
    """The script of a letter by the first word of its Unicode name; empty for other characters."""
    if unicodedata.category(character)[0] != "L":
        return ""
    word = unicodedata.name(character, "").partition(" ")[0]
    if word in ("MODIFIER", "KATAKANA-HIRAGANA"):
        return ""
    return "CJK" if word in ("IDEOGRAPHIC", "VERTICAL") else word


def similar_names(name: str, names: list[str], num: int = 3) -> list[str]:
    """The closest of many names: a quick count of shared pairs of letters, then `difflib`."""
    folded = name.casefold()
    pairs = {folded[i : i + 2] for i in range(len(folded) - 1)} or {folded}
    shared = [(sum(pair in other.casefold() for pair in pairs), other) for other in names]
    # difflib takes about 20 us a name: a second and more for 100,000 of them.
    shortlist = [other for count, other in sorted(shared, reverse=True)[:200] if count]
    by_folded = {other.casefold(): other for other in shortlist}
    return [by_folded[match] for match in difflib.get_close_matches(folded, by_folded, num)]
