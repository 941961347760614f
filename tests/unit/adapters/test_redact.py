"""A credential does not come back, in whatever encoding it is echoed."""

from __future__ import annotations

import base64
import json
import re
from urllib.parse import quote, quote_plus

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.adapters.redact import MARK, Redactor

SECRETS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=8, max_size=80)


@pytest.mark.invariant(8)
@given(SECRETS, st.binary(max_size=7), st.binary(max_size=7))
def test_no_encoding_carries_it(secret: str, before: bytes, after: bytes) -> None:
    raw = secret.encode()
    redact = Redactor(secret)
    echoes = [
        raw,
        json.dumps(secret).encode()[1:-1],
        msgspec.json.encode(secret)[1:-1],
        quote(secret).encode(),
        quote(secret, safe="").encode(),
        re.sub("%..", lambda escape: escape[0].lower(), quote(secret, safe="")).encode(),
        quote_plus(secret).encode(),
        raw.hex().encode(),
        raw.hex().upper().encode(),
        base64.b64encode(raw).rstrip(b"="),
        base64.urlsafe_b64encode(raw).rstrip(b"="),
    ]
    for echo in echoes:
        assert echo not in redact(b"<" + echo + b">")
    for encode, decode in (
        (base64.b64encode, base64.b64decode),
        (base64.urlsafe_b64encode, base64.urlsafe_b64decode),
    ):
        inside = redact(encode(before + raw + after))
        assert MARK in inside
        rest = inside.replace(MARK, b"").rstrip(b"=")
        # What is left decodes, at any alignment, to nothing like the secret.
        for shift in range(4):
            piece = rest[shift:]
            assert raw not in decode(piece[: len(piece) // 4 * 4] or b"")


def test_what_does_not_hold_it_is_the_same_object() -> None:
    data = b"nothing to see"
    assert Redactor("s3cr3t")(data) is data
    assert Redactor("")(data) is data
    assert Redactor()(data) is data
    assert Redactor("see")(data) is data
    assert Redactor("user:pass", "pass")(b"the pass word") == b"the " + MARK + b" word"


def test_basic_in_a_header_echo() -> None:
    secret = "agent@example.com/token:abc/def+ghi"
    echo = b'{"Authorization":"Basic ' + base64.b64encode(secret.encode()) + b'"}'
    assert b"YWdlbnRAZXhhbXBsZS5jb20" not in Redactor(secret)(echo)
