r"""File names as texts that a table, a JSON and a list with one name a line can hold, and back.

A name on Linux is any bytes. Most are valid UTF-8 and stay as they are. A backslash is doubled; every byte of what
is no UTF-8, of a control character or of a line separator is written ``\xNN``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# Surrogates are how Python holds bytes that are no UTF-8.
_ESCAPED = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ESCAPES = re.compile(r"\\\\|(?:\\x[0-9a-f]{2})+")


def name_to_text(name: str | Path) -> str:
    """The text of a name or path; different names have different texts."""
    return _ESCAPED.sub(lambda found: _escape(found[0]), os.fspath(name))


def text_to_name(text: str) -> str:
    """The name that has this text."""
    return _ESCAPES.sub(lambda found: _unescape(found[0]), text)


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def _unescape(escape: str) -> str:
    if escape == "\\\\":
        return "\\"
    return os.fsdecode(bytes.fromhex(escape.replace("\\x", "")))
