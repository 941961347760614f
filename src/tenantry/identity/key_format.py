"""The shape of an API key: ``tnk_``, 12 characters of id, ``_``, 43 characters of secret (256 random bits).

Only the SHA-256 of the whole token is stored. A slow, salted hash is for passwords, which people choose and
attackers list; of 256 random bits no list exists, so a plain digest gives nothing away, needs no salt, and
lets one indexed look-up find the key.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final

import msgspec

from tenantry.core.clock import Clock
from tenantry.core.ids import KeyId

_KEY_ID: Final = re.compile(r"[0-9A-HJKMNP-TV-Z]{12}", re.ASCII)
_TOKEN: Final = re.compile(r"tnk_([0-9A-HJKMNP-TV-Z]{12})_[A-Za-z0-9_-]{43}", re.ASCII)
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_TOKEN_CHARS: Final = 4 + 12 + 1 + 43


class ParsedKey(msgspec.Struct, frozen=True):
    """What is kept of a token: its public id and its digest (32 bytes)."""

    key_id: KeyId
    key_sha256: bytes

    @property
    def prefix(self) -> str:
        """What people see of the token to tell it from others."""
        return f"tnk_{self.key_id}"


def new_key(clock: Clock) -> str:
    """A new token, from 316 random bits."""
    bits = int.from_bytes(clock.random_bytes(8), "big")
    key_id = "".join(_ALPHABET[(bits >> (5 * place)) & 31] for place in range(12))
    secret = base64.urlsafe_b64encode(clock.random_bytes(32)).rstrip(b"=").decode()
    return f"tnk_{key_id}_{secret}"


def parse_key(token: str) -> ParsedKey | None:
    """The id and digest of a token of the right shape, else None. Cost: ~2 us, whatever its length."""
    if len(token) != _TOKEN_CHARS:
        return None
    match = _TOKEN.fullmatch(token)
    if match is None:
        return None
    return ParsedKey(KeyId(match[1]), hashlib.sha256(token.encode()).digest())


def is_key_id(text: str) -> bool:
    """Whether a text has the shape of a key's id."""
    return _KEY_ID.fullmatch(text) is not None
