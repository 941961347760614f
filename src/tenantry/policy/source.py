"""Cedar text before Cedar reads it: cut into statements, measured, and places in it found again.

Cedar's parser recurses with the nesting of its input and has no bound of its own: a few hundred brackets
overflow the stack and end the process, and with it every other tenant's work. So nothing is handed to it that
was not measured here. The bounds on words and patterns also bound what one decision can cost its neighbours.
"""

from __future__ import annotations

import itertools
import re
from typing import Final, Literal

import msgspec

TEXT_CHARS_MAX: Final = 65_536
POLICIES_MAX: Final = 500
LAYER_TOKENS_MAX: Final = 8_000
TOKENS_MAX: Final = 2_000
BRACKETS_MAX: Final = 24
IFS_MAX: Final = 50
LITERAL_CHARS_MAX: Final = 1_024
# `like` costs the product of both lengths.
PATTERN_CHARS_MAX: Final = 2_048

# Possessive and with an optional end, so that a string without one costs its length once and no more.
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+)
    |(?P<comment>//[^\n\r]*)
    |(?P<string>"(?:\\.|[^"\\])*+(?P<end>")?)
    |(?P<word>[_a-zA-Z][_a-zA-Z0-9]*)
    |(?P<number>[0-9]+)
    |(?P<mark>::|==|!=|<=|>=|&&|\|\||[][(){}<>!?@,;:.+*=|&%/-])
    |(?P<alien>.)""",
    re.VERBOSE | re.DOTALL,
)


class Token(msgspec.Struct, frozen=True):
    """One token; ``start`` is its offset in the layer's text, in characters."""

    kind: Literal["string", "word", "number", "mark", "alien"]
    text: str
    start: int


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with a text, and at which offset."""

    offset: int
    message: str


class Statement(msgspec.Struct, frozen=True):
    """One policy's text, from its first token to its semicolon; ``start`` is its offset."""

    start: int
    text: str
    tokens: tuple[Token, ...]


def split_statements(text: str) -> tuple[list[Statement], list[Fault]]:
    """Cut a layer into statements; one that is out of bounds or ill-formed is a fault and not in the list.

    Linear in the text, which is at most `TEXT_CHARS_MAX`.
    """
    unreadable = _unreadable(text)
    if unreadable is not None:
        return [], [unreadable]
    if len(text) > TEXT_CHARS_MAX:
        return [], [Fault(0, f"too long: {len(text)} characters, at most {TEXT_CHARS_MAX} in a layer")]
    statements: list[Statement] = []
    faults: list[Fault] = []
    count = patterns = 0
    pending: list[Token] = []
    for token in _tokens(text):
        pending.append(token)
        if token.text != ";":
            continue
        count += len(pending)
        patterns += _pattern_chars(pending)
        fault = _measure(pending)
        if fault is None:
            start = pending[0].start
            statements.append(Statement(start, text[start : token.start + 1], tuple(pending)))
        else:
            faults.append(fault)
        pending = []
    if pending:
        faults.append(_alien(pending) or Fault(pending[-1].start, "the last policy does not end in `;`"))
    excess = _excess(len(statements), count, patterns)
    return (statements, faults) if not excess else ([], excess)


def _excess(policies: int, tokens: int, patterns: int) -> list[Fault]:
    """What a whole layer has too much of."""
    bounds = (
        (policies, POLICIES_MAX, "policies"),
        (tokens, LAYER_TOKENS_MAX, "words and signs"),
        (patterns, PATTERN_CHARS_MAX, "characters in `like` patterns"),
    )
    return [Fault(0, f"{n} {what}, at most {most} in a layer") for n, most, what in bounds if n > most]


def _unreadable(text: str) -> Fault | None:
    """What no policy may hold anywhere, not even in a comment: the database could not keep it."""
    if "\0" in text:
        return Fault(text.index("\0"), "a policy cannot hold a NUL")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Fault(error.start, "this is no Unicode text: a lone surrogate")
    return None


def _tokens(text: str) -> list[Token]:
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        match match.lastgroup:
            case "string" if match["end"] is None:
                tokens.append(Token("alien", '"', match.start()))
            case "string" | "word" | "number" | "mark" | "alien" as kind:
                tokens.append(Token(kind, match.group(), match.start()))
            case _:
                pass
    return tokens


def _pattern_chars(tokens: list[Token]) -> int:
    return sum(len(after.text) for token, after in itertools.pairwise(tokens) if token.text == "like")


def _measure(tokens: list[Token]) -> Fault | None:
    """The first thing about one statement that is out of bounds."""
    start = tokens[0].start
    alien = _alien(tokens)
    if alien is not None:
        return alien
    if len(tokens) > TOKENS_MAX:
        return Fault(start, f"{len(tokens)} words and signs, at most {TOKENS_MAX} in a policy")
    depth = ifs = 0
    for token in tokens:
        if token.kind == "string" and len(token.text) > LITERAL_CHARS_MAX:
            return Fault(token.start, f"a string is at most {LITERAL_CHARS_MAX} characters long")
        ifs += token.text == "if"
        if ifs > IFS_MAX:
            return Fault(token.start, f"at most {IFS_MAX} `if` in a policy; write several policies")
        if token.text in {"(", "[", "{"}:
            depth += 1
        elif token.text in {")", "]", "}"}:
            depth -= 1
        if depth > BRACKETS_MAX:
            return Fault(token.start, f"brackets nest at most {BRACKETS_MAX} deep")
    return None


def _alien(tokens: list[Token]) -> Fault | None:
    for token in tokens:
        if token.text == '"':
            return Fault(token.start, "this string does not end")
        if token.kind == "alien":
            return Fault(token.start, f"a policy cannot hold {token.text!a} here")
    return None
