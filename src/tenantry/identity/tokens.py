"""Run tokens: what an agent holds, and how the doors know whose run it is (DESIGN §4).

A token is a JSON Web Token (RFC 7519) signed with Ed25519 (RFC 8037). It carries no rights: a run's attempt
counts only while `begin` finds its lease live. The header is never parsed: it must equal, byte for byte, the
one header that the key in use writes. So another algorithm (`none`, HS256, RS256), type, key id, or a `jwk`,
`jku` or `crit` of the caller's own is not even looked at, and there is no way to steer how a token is
verified (RFC 8725 §3.1).

The signature is checked by `cryptography` itself: a JOSE library adds its own header parsing and half as much
time again. Verified tokens are remembered by digest until they expire, which makes the hot path a hash and a
look-up.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tenantry.core.clock import Clock
from tenantry.core.errors import InvalidInputError, UnauthenticatedError
from tenantry.core.ids import AgentId, PrincipalId, RunId, WorkspaceId, parse_tenant_id
from tenantry.core.run import RunClaims
from tenantry.identity.secret_files import create_private_file, read_private_file

TOKEN_TYPE: Final = "tenantry-run+jwt"
ISSUER: Final = "tenantry"
AUDIENCE: Final = "tenantry-gateway"
TOKEN_BYTES_MAX: Final = 4 * 1024
LIFETIME_S_MAX: Final = 24 * 3600
VERIFIED_MAX: Final = 10_000
# How far another machine's clock may run ahead of ours when it issues: hosts that keep time differ by
# milliseconds, so 5 s is ample. Expiry has no leeway: the lease ends with the deadline anyway, so a later end
# admits nothing.
LEEWAY_S: Final = 5

_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Second = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class _Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    iss: str
    aud: str
    iat: _Second
    exp: _Second
    tenant: _Id
    workspace: _Id
    agent: _Id
    run: _Id
    attempt: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    principal: _Id
    nbf: _Second | None = None


class _PrivateJwk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """RFC 8037 §2; `d` is the private part."""

    kty: str
    crv: str
    x: str
    d: str


class RunTokens:
    """Issues and verifies run tokens under one key.

    Cost of `verify`: ~2 us for a token verified before, else one Ed25519 check (~0.2 ms). No I/O.
    """

    def __init__(self, key: Ed25519PrivateKey, clock: Clock) -> None:
        self._key = key
        self._public = key.public_key()
        self._clock = clock
        self._x = _encode(self._public.public_bytes_raw())
        self._kid = _thumbprint(self._x)
        header = msgspec.json.encode({"alg": "EdDSA", "kid": self._kid, "typ": TOKEN_TYPE})
        self._header = _encode(header)
        self._payloads = msgspec.json.Decoder(_Payload, strict=True)
        self._verified: OrderedDict[bytes, RunClaims] = OrderedDict()

    @classmethod
    def from_file(cls, path: Path, clock: Clock) -> RunTokens:
        """Load the key from a private JSON Web Key file (mode 0600), making the file at the first start.

        All processes of an installation read the same file. Raises `InvalidInputError` that names the file.
        """
        content = read_private_file(path)
        if content is None:
            content = create_private_file(path, _new_jwk(), clock)
        try:
            jwk = msgspec.json.decode(content, type=_PrivateJwk)
            key = Ed25519PrivateKey.from_private_bytes(_decode(jwk.d))
        except (msgspec.MsgspecError, ValueError) as error:
            raise InvalidInputError(f"{path} does not hold an Ed25519 key", path=str(path)) from error
        made = cls(key, clock)
        if (jwk.kty, jwk.crv, jwk.x) != ("OKP", "Ed25519", made._x):
            raise InvalidInputError(f"{path} holds a key whose two halves do not match", path=str(path))
        return made

    def issue(self, claims: RunClaims) -> str:
        """A token for one attempt of a run; it expires at the claims' whole second, at most 24 h from now.

        Raises `InvalidInputError` when a claim has not the shape that `verify` demands.
        """
        now = int(self._clock.now().timestamp())
        expires = int(claims.expires_at.timestamp())
        if not now <= expires <= now + LIFETIME_S_MAX:
            raise InvalidInputError("a run token expires in the next 24 hours", path="$.expires_at")
        payload = _Payload(
            iss=ISSUER,
            aud=AUDIENCE,
            iat=now,
            exp=expires,
            tenant=claims.tenant_id,
            workspace=claims.workspace_id,
            agent=claims.agent_id,
            run=claims.run_id,
            attempt=claims.attempt,
            principal=claims.principal_id,
        )
        parse_tenant_id(payload.tenant, path="$.tenant_id")
        try:
            body = msgspec.json.encode(payload)
            self._payloads.decode(body)
        except (msgspec.MsgspecError, UnicodeEncodeError) as error:
            raise InvalidInputError("a claim of the run token has not its shape") from error
        signed = f"{self._header}.{_encode(body)}"
        token = f"{signed}.{_encode(self._key.sign(signed.encode()))}"
        if len(token) > TOKEN_BYTES_MAX:
            raise InvalidInputError("the run token is longer than 4 KiB; shorten its ids")
        return token

    def verify(self, token: str) -> RunClaims:
        """The claims of a good token. Raises `UnauthenticatedError`, alike for all that can be wrong."""
        found = self.find_cached(token)
        if found is not None:
            return found
        claims = self._check(token)
        self._verified[hashlib.sha256(token.encode()).digest()] = claims
        if len(self._verified) > VERIFIED_MAX:
            self._verified.popitem(last=False)
        return claims

    def find_cached(self, token: str) -> RunClaims | None:
        """The claims of a token that was verified before and has not expired; None: `verify` must look."""
        if len(token) > TOKEN_BYTES_MAX or not token.isascii():
            return None
        digest = hashlib.sha256(token.encode()).digest()
        claims = self._verified.get(digest)
        if claims is None:
            return None
        if claims.expires_at <= self._clock.now():
            del self._verified[digest]
            return None
        self._verified.move_to_end(digest)
        return claims

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The public key as a JSON Web Key Set (RFC 7517 §5)."""
        return {
            "keys": [
                {"kty": "OKP", "crv": "Ed25519", "x": self._x, "kid": self._kid, "use": "sig", "alg": "EdDSA"}
            ]
        }

    def _check(self, token: str) -> RunClaims:
        if len(token) > TOKEN_BYTES_MAX or not token.isascii():
            raise _refusal()
        signed, _, signature = token.rpartition(".")
        header, _, body = signed.partition(".")
        if header != self._header:
            raise _refusal()
        try:
            self._public.verify(_decode(signature), signed.encode())
            payload = self._payloads.decode(_decode(body))
            tenant_id = parse_tenant_id(payload.tenant)
        except (InvalidSignature, ValueError, msgspec.MsgspecError, InvalidInputError):
            raise _refusal() from None
        now = self._clock.now().timestamp()
        begins = max(payload.iat, payload.nbf or 0)
        if (
            (payload.iss, payload.aud) != (ISSUER, AUDIENCE)
            or payload.exp <= now
            or begins > now + LEEWAY_S
            or not 0 <= payload.exp - payload.iat <= LIFETIME_S_MAX
        ):
            raise _refusal()
        return RunClaims(
            tenant_id=tenant_id,
            workspace_id=WorkspaceId(payload.workspace),
            agent_id=AgentId(payload.agent),
            run_id=RunId(payload.run),
            attempt=payload.attempt,
            principal_id=PrincipalId(payload.principal),
            expires_at=dt.datetime.fromtimestamp(payload.exp, tz=dt.UTC),
        )


def _refusal() -> UnauthenticatedError:
    return UnauthenticatedError("the run token is not valid here; ask for a new one by starting a run")


def _new_jwk() -> bytes:
    """A new key, from the kernel and never from a `Clock`, whose chance a test may repeat."""
    key = Ed25519PrivateKey.generate()
    public, private = _encode(key.public_key().public_bytes_raw()), _encode(key.private_bytes_raw())
    return msgspec.json.encode(_PrivateJwk(kty="OKP", crv="Ed25519", x=public, d=private))


def _thumbprint(x: str) -> str:
    """RFC 7638 over the members that RFC 8037 §2 requires, in their order."""
    members = msgspec.json.encode({"crv": "Ed25519", "kty": "OKP", "x": x})
    return _encode(hashlib.sha256(members).digest())


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """Base64url without padding, one spelling a value. Raises ValueError."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if _encode(raw) != text:
        raise ValueError("not the one spelling of these bytes")
    return raw
