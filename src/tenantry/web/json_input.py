"""JSON from outside, read strictly: UTF-8 only, no lone surrogates, no NUL, no NaN, bounded.

Whatever a database or another parser could choke on is refused here, with the path of the bad field. Of an
object's doubled keys the last one counts; what is passed on is written anew, so that nobody downstream reads
another.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from tenantry.core.errors import InvalidInputError

T = TypeVar("T")

DEPTH_MAX: Final = 64
VALUES_MAX: Final = 50_000
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1
_PATH_KEY_CHARS_MAX: Final = 64
_ESCAPED_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_AT: Final = re.compile(r" - at (?:key in )?`([^`]*)`$")
_FIELD: Final = re.compile(r"Object (?:contains unknown|missing required) field `(.*)`$", re.DOTALL)
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


def decode_strictly(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The body as the decoder's type. Raises `InvalidInputError` that names the bad field's path.

    Cost: one pass over the bytes and one of the decoder; a fault costs a second parse to find its place.
    """
    check_text(body)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        raise InvalidInputError(_words_of(message), path=_path_of(message)) from None
    except RecursionError:
        raise InvalidInputError("the JSON is nested too deeply") from None
    except msgspec.DecodeError as error:
        place = find_bad_text(body)
        if place is not None:
            raise InvalidInputError("the text holds a lone surrogate", path=place) from None
        raise InvalidInputError(_lowered(str(error))) from None


def check_text(body: bytes) -> None:
    """Refuse bytes that are not UTF-8, and NUL, raw or escaped. Raises `InvalidInputError`."""
    if not body:
        raise InvalidInputError("the body is empty; send JSON")
    if not body.isascii():
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"the body is not UTF-8 (byte {error.start})") from None
    if b"\\u0000" in body and _ESCAPED_NUL.search(body) is not None:
        raise InvalidInputError("the text holds a NUL character", path=find_bad_text(body) or "$")


def check_values(value: object, *, path: str = "$") -> None:
    """Refuse a decoded value that is too deep, has too many parts, or holds a number beyond 64 bits.

    Raises `InvalidInputError` that names the path. Cost: one step a value, at most `VALUES_MAX`; paths are
    made only once something is wrong.
    """
    seen = 0
    stack: list[tuple[object, int]] = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        seen += 1
        if isinstance(item, dict | list):
            if depth >= DEPTH_MAX:
                raise InvalidInputError(f"the JSON is nested deeper than {DEPTH_MAX}", path=path)
            if seen + len(stack) + len(item) > VALUES_MAX:
                raise InvalidInputError(f"the JSON holds more than {VALUES_MAX} values", path=path)
            children = item.values() if isinstance(item, dict) else item
            stack.extend([(child, depth + 1) for child in children])
        elif _is_out_of_range(item):
            place = _find(value, path, _is_out_of_range)
            raise InvalidInputError("the number does not fit into 64 bits", path=place or path)


def find_bad_text(body: bytes) -> str | None:
    """The path of the first string or key with a NUL or a lone surrogate, None where none is found."""
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return _find(value, "$", _is_bad_text)


def field_path(parent: str, key: str) -> str:
    """``$.parent.key``; a key that is no plain word is quoted, and shortened."""
    if _PLAIN_KEY.fullmatch(key):
        return f"{parent}.{key}"
    return f"{parent}[{json.dumps(key[:_PATH_KEY_CHARS_MAX])}]"


def _find(value: object, path: str, is_bad: Callable[[object], bool]) -> str | None:
    """Where the first bad value stands, in the order of the text; a bad key is told as its object."""
    stack: list[tuple[object, str]] = [(value, path)]
    while stack:
        item, where = stack.pop()
        if isinstance(item, dict):
            if any(is_bad(key) for key in item):
                return where
            stack.extend(reversed([(child, field_path(where, key)) for key, child in item.items()]))
        elif isinstance(item, list):
            stack.extend(reversed([(child, f"{where}[{index}]") for index, child in enumerate(item)]))
        elif is_bad(item):
            return where
    return None


def _is_out_of_range(item: object) -> bool:
    if isinstance(item, float):
        return not math.isfinite(item)
    return isinstance(item, int) and not INTEGER_MIN <= item <= INTEGER_MAX


def _is_bad_text(item: object) -> bool:
    if not isinstance(item, str):
        return False
    if "\0" in item:
        return True
    try:
        item.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _path_of(message: str) -> str:
    at = _AT.search(message)
    path = at.group(1) if at else "$"
    field = _FIELD.match(_AT.sub("", message))
    return field_path(path, field.group(1)) if field else path


def _words_of(message: str) -> str:
    message = _AT.sub("", message)
    if _FIELD.match(message) is None:
        return _lowered(message)
    return "the field is unknown" if message.startswith("Object contains") else "the field is required"


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]
