"""Text of others as people see it: what would steer a terminal or turn a line is shown, not obeyed.

Engines, model files and bundles name themselves; a name may hold an escape sequence that wipes a
verdict off a terminal, or a mark that turns the direction of a line.
"""

from typing import Final

from harness.observation import Json

_DIRECTIONS: Final = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}


def visible(value: Json) -> str:
    """Text whose control and direction characters are shown as escapes, not obeyed."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def one_line(value: Json) -> str:
    """The same, with line breaks and tabs shown too: no text of others begins a line of ours."""
    text = visible(value)
    return text if text.isprintable() else text.replace("\n", "\\n").replace("\t", "\\t")


def _shown(character: str) -> str:
    if character in "\n\t":
        return character
    code = ord(character)
    hidden = code in _DIRECTIONS or code < 0x20 or 0x7F <= code < 0xA0
    hidden = hidden or 0xD800 <= code < 0xE000 or code in (0x2028, 0x2029)
    return f"\\u{code:04x}" if hidden else character
