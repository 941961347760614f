"""Takes a credential out of what an upstream answered, in the encodings in which an echo would carry it.

INVARIANT 8: an upstream that sends our own credential back does not hand it to an agent.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Final
from urllib.parse import quote, quote_plus

MARK: Final = b"[redacted]"
SECRET_CHARS_MIN: Final = 4
_PIECE_BYTES_MIN: Final = 6
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]+")
_ESCAPE: Final = re.compile("%[0-9A-F]{2}")
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


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
    forms = {raw}
    if _PLAIN.fullmatch(secret) is None:
        # Any other secret looks different in JSON or a URL; most keys do not.
        percent = quote(raw, safe=b"")
        forms |= {
            json.dumps(secret, ensure_ascii=False)[1:-1].encode("utf-8", "surrogatepass"),
            json.dumps(secret)[1:-1].encode(),
            percent.encode(),
            _ESCAPE.sub(lambda escape: escape[0].lower(), percent).encode(),
            quote(raw).encode(),
            quote_plus(raw).encode(),
        }
    digits = raw.hex()
    encoded = {digits.encode(), digits.upper().encode(), *_base64_forms(raw)}
    return forms | {form for form in encoded if len(form) >= _PIECE_BYTES_MIN}


def _base64_forms(raw: bytes) -> set[bytes]:
    """The characters that `raw` alone determines, wherever in a longer encoded text it begins."""
    forms = set()
    for shift in range(3):
        padded = bytes(shift) + raw
        begin, end = -(-8 * shift // 6), 8 * len(padded) // 6
        form = base64.b64encode(padded)[begin:end]
        forms |= {form, form.translate(_URL_SAFE)}
    return forms
