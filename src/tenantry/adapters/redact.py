"""Takes a credential out of what an upstream answered, in the encodings in which an echo would carry it.

INVARIANT 8: an upstream that sends our own credential back does not hand it to an agent.
"""

from __future__ import annotations

import base64
import json
from typing import Final
from urllib.parse import quote, quote_plus

MARK: Final = b"[redacted]"
SECRET_CHARS_MIN: Final = 4
_PIECE_BYTES_MIN: Final = 6


class Redactor:
    """Knows the forms of one credential: raw, JSON, percent, hex, and base64 at each of its three alignments.

    Secrets of fewer than four characters are left alone: they would be found everywhere.
    """

    def __init__(self, *secrets: str) -> None:
        forms = {form for secret in secrets if len(secret) >= SECRET_CHARS_MIN for form in _forms(secret)}
        # The longest first, so that no part of one is replaced and the rest left standing.
        self._forms = sorted(forms, key=lambda form: (-len(form), form))

    def __call__(self, data: bytes) -> bytes:
        """The data without the credential; the same object when it was not there."""
        for form in self._forms:
            if form in data:
                data = data.replace(form, MARK)
        return data

    def text(self, data: str) -> str:
        """The same for text."""
        return self(data.encode("utf-8", "replace")).decode("utf-8", "replace")


def _forms(secret: str) -> set[bytes]:
    raw = secret.encode("utf-8", "surrogatepass")
    percent = quote(raw, safe=b"")
    forms = {
        raw,
        json.dumps(secret, ensure_ascii=False)[1:-1].encode("utf-8", "surrogatepass"),
        json.dumps(secret)[1:-1].encode(),
        percent.encode(),
        percent.lower().encode(),
        quote(raw).encode(),
        quote_plus(raw).encode(),
    }
    forms.update(
        form
        for form in (raw.hex().encode(), raw.hex().upper().encode(), *_base64_forms(raw))
        if len(form) >= _PIECE_BYTES_MIN
    )
    return forms


def _base64_forms(raw: bytes) -> set[bytes]:
    """The characters that `raw` alone determines, wherever in a longer encoded text it begins."""
    forms = set()
    for shift in range(3):
        padded = bytes(shift) + raw
        begin, end = -(-8 * shift // 6), 8 * len(padded) // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            forms.add(encode(padded)[begin:end])
    return forms
