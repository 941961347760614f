"""Places in policy text: where that stands which Cedar complains of. It names the thing, not the place."""

from __future__ import annotations

import bisect
import itertools
import re
from typing import Final

import cedarpy
import msgspec

from tenantry.policy.source import Fault, Statement, Token

_QUOTED: Final = re.compile(r"`([^`]*)`")


class Place(msgspec.Struct, frozen=True):
    """A place in a text, for people: both count from 1, columns in characters."""

    line: int
    column: int


def place_of(text: str, offset: int) -> Place:
    """The line and column of an offset."""
    before = text[:offset]
    return Place(line=before.count("\n") + 1, column=offset - (before.rfind("\n") + 1) + 1)


def find_named(statement: Statement, message: str) -> int:
    """The offset of what a message names in backticks: as an attribute if it is one, else anywhere."""
    for quoted in _QUOTED.findall(message):
        tokens = statement.tokens
        for before, token in itertools.pairwise(tokens):
            if before.text == "." and token.text == quoted:
                return token.start
        for token in tokens:
            if quoted in {token.text, token.text[1:-1]}:
                return token.start
    return statement.start


def syntax_fault(statement: Statement, message: str) -> Fault:
    """Where Cedar's parser gave up.

    Among tokens equal to the one it names, the first that breaks the text before it is found by halving: a
    prefix ended by `;` fails at that token only if it holds the culprit. Costs at most 12 parses of one
    statement.
    """
    quoted = _QUOTED.search(message)
    if not message.startswith("unexpected token") or quoted is None:
        return Fault(find_named(statement, message), message)
    candidates = [token for token in statement.tokens if token.text == quoted.group(1)]
    if not candidates:
        return Fault(statement.start, message)
    if candidates[0].text == ";":
        return Fault(candidates[0].start, message)

    def breaks(token: Token) -> bool:
        end = token.start + len(token.text) - statement.start
        try:
            cedarpy.policies_to_json_str(statement.text[:end] + ";")
        except ValueError as error:
            return str(error) == message
        return False

    place = bisect.bisect_left(candidates, 1, key=breaks)
    return Fault(candidates[min(place, len(candidates) - 1)].start, message)
