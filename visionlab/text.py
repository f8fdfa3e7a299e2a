"""Text out of files that others wrote, made fit for a message: no control characters, nothing endless."""

from __future__ import annotations

import json
from typing import Any


def printable(text: str, *, keep: str = "") -> str:
    """Return a text with every character that does not print, such as ESC or half a surrogate pair, as its escape.

    Args:
        text: from a file, such as a file's name.
        keep: characters that stay though they do not print, such as a line's end.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def shorten(text: str, most: int = 200) -> str:
    """Return a text, or where it has more than ``most`` characters its start and how many it has."""
    return text if len(text) <= most else f"{text[: most - 40]}… ({len(text)} characters)"


def show(value: Any) -> str:
    """Return a value out of a json file as it stands there, fit for one line of a message."""
    return printable(shorten(json.dumps(value, ensure_ascii=False, default=str)))
