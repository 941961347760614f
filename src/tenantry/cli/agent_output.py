"""What a program printed, read as its run's result: the last JSON value on stdout, or all of it as text."""

from __future__ import annotations

import json
from typing import Any, Final

# The platform keeps 256 KiB of JSON, in which a byte of text may take six.
KEPT_BYTES_MAX: Final = 192 * 1024
# Beginnings of values that turn out to be none cost a look at all that follows.
LOOKS_MAX: Final = 1_000
_BEGINNINGS: Final = frozenset('{["-0123456789tfn')


class Tail:
    """The end of what a program printed; at most `KEPT_BYTES_MAX` bytes of it."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self.total_bytes = 0

    def add(self, data: bytes) -> None:
        """Keep what was printed next."""
        self.total_bytes += len(data)
        self._kept += data
        if len(self._kept) > 2 * KEPT_BYTES_MAX:
            del self._kept[:-KEPT_BYTES_MAX]

    def result(self) -> Any:  # noqa: ANN401 - JSON
        """The run's result; None for a program that printed nothing."""
        return result_of(bytes(self._kept[-KEPT_BYTES_MAX:]))


def result_of(printed: bytes) -> Any:  # noqa: ANN401 - JSON
    """The last JSON value that begins at the beginning of a line and ends at the end of one, else the text.

    Text that UTF-8 or the platform cannot hold is mended: broken bytes and NUL become U+FFFD.
    """
    text = printed.decode("utf-8", "replace").replace("\0", "\ufffd")
    found, value = _last_value(text)
    if found:
        return value
    return text.strip() or None


def _last_value(text: str) -> tuple[bool, Any]:
    decoder = json.JSONDecoder(parse_constant=_refuse)
    found: tuple[bool, Any] = (False, None)
    place = looks = 0
    while place < len(text) and looks < LOOKS_MAX:
        end_of_line = text.find("\n", place)
        end_of_line = len(text) if end_of_line < 0 else end_of_line
        start = place
        while start < end_of_line and text[start] in " \t\r":
            start += 1
        next_place = end_of_line + 1
        if start < end_of_line and text[start] in _BEGINNINGS:
            try:
                value, end = decoder.raw_decode(text, start)
            except (ValueError, RecursionError):
                looks += 1
            else:
                rest = text.find("\n", end)
                rest = len(text) if rest < 0 else rest
                if not text[end:rest].strip() and _is_plain(value):
                    found = (True, value)
                    next_place = rest + 1
        place = next_place
    return found


def _refuse(word: str) -> Any:  # noqa: ANN401 - as the decoder wants it
    raise ValueError(f"{word} is not JSON")


def _is_plain(value: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether it can be sent: lone surrogates, NUL and numbers beyond JSON's usual range cannot."""
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
        written.encode()
    except (ValueError, RecursionError):
        return False
    return "\\u0000" not in written
