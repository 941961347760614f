"""Run tokens: what is issued verifies, and nothing else does."""

from __future__ import annotations

import base64
import datetime as dt
import hmac
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.identity.manual_clock import ManualClock

from tenantry.core.errors import InvalidInputError, UnauthenticatedError
from tenantry.core.ids import AgentId, PrincipalId, RunId, TenantId, WorkspaceId
from tenantry.core.run import RunClaims
from tenantry.identity import tokens as module
from tenantry.identity.tokens import RunTokens

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CLOCK = ManualClock()
NOW = int(CLOCK.at.timestamp())
PAYLOAD: dict[str, object] = {
    "iss": "tenantry",
    "aud": "tenantry-gateway",
    "iat": NOW,
    "exp": NOW + 60,
    "tenant": "acme",
    "workspace": "east",
    "agent": "triage",
    "run": "run_1",
    "attempt": 1,
    "principal": "prn_1",
}


def claims(clock: ManualClock, seconds: float = 60, changes: dict[str, object] | None = None) -> RunClaims:
    made = RunClaims(
        tenant_id=TenantId("acme"),
        workspace_id=WorkspaceId("east"),
        agent_id=AgentId("triage"),
        run_id=RunId("run_1"),
        attempt=1,
        principal_id=PrincipalId("prn_1"),
        expires_at=clock.at + dt.timedelta(seconds=seconds),
    )
    return msgspec.structs.replace(made, **(changes or {}))


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def header(**changes: object) -> dict[str, object]:
    kid = RunTokens(KEY, CLOCK).jwks()["keys"][0]["kid"]
    return {"alg": "EdDSA", "kid": kid, "typ": "tenantry-run+jwt"} | changes


def forge(payload: object, head: object = None, sign: Callable[[bytes], bytes] | None = KEY.sign) -> str:
    dump = msgspec.json.encode
    head_part = b64(dump(header() if head is None else head))
    signed = f"{head_part}.{b64(payload if isinstance(payload, bytes) else dump(payload))}"
    return f"{signed}.{b64(sign(signed.encode())) if sign else ''}"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def tokens(clock: ManualClock) -> RunTokens:
    return RunTokens(KEY, clock)


def test_what_is_issued_verifies_and_the_first_forgery_helper_is_sound(
    tokens: RunTokens, clock: ManualClock
) -> None:
    given_claims = claims(clock)
    token = tokens.issue(given_claims)
    assert token == forge(PAYLOAD)
    assert tokens.verify(token) == given_claims
    assert tokens.find_cached(token) == given_claims
    assert len(token) < 700


def test_another_process_with_the_same_key_verifies_it(clock: ManualClock, tokens: RunTokens) -> None:
    assert RunTokens(KEY, clock).verify(tokens.issue(claims(clock))) == claims(clock)


def rsa_sign(message: bytes) -> bytes:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048).sign(message, PKCS1v15(), SHA256())


def hmac_by_public_key(message: bytes) -> bytes:
    return hmac.digest(KEY.public_key().public_bytes_raw(), message, "sha256")


STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(32))
STRANGER_X = b64(STRANGER.public_key().public_bytes_raw())
HOSTILE: dict[str, Callable[[], str]] = {
    "empty": lambda: "",
    "dots": lambda: "..",
    "four parts": lambda: forge(PAYLOAD) + ".x",
    "two parts": lambda: forge(PAYLOAD).rpartition(".")[0],
    "alg none": lambda: forge(PAYLOAD, header(alg="none"), None),
    "alg none, signed": lambda: forge(PAYLOAD, header(alg="none")),
    "no signature": lambda: forge(PAYLOAD, None, None),
    "HS256 by the public key": lambda: forge(PAYLOAD, header(alg="HS256"), hmac_by_public_key),
    "RS256": lambda: forge(PAYLOAD, header(alg="RS256"), rsa_sign),
    "typ JWT": lambda: forge(PAYLOAD, header(typ="JWT")),
    "typ of a transaction token": lambda: forge(PAYLOAD, header(typ="txntoken+jwt")),
    "no typ": lambda: forge(PAYLOAD, {"alg": "EdDSA", "kid": header()["kid"]}),
    "another kid": lambda: forge(PAYLOAD, header(kid="../../dev/null")),
    "a kid of its own": lambda: forge(PAYLOAD, header(kid="k"), STRANGER.sign),
    "a key of its own": lambda: forge(
        PAYLOAD, header(jwk={"kty": "OKP", "crv": "Ed25519", "x": STRANGER_X}), STRANGER.sign
    ),
    "a key by address": lambda: forge(PAYLOAD, header(jku="http://127.0.0.1/k"), STRANGER.sign),
    "crit": lambda: forge(PAYLOAD, header(crit=["exp"])),
    "a stranger's signature": lambda: forge(PAYLOAD, None, STRANGER.sign),
    "signature of zeros": lambda: forge(PAYLOAD, None, lambda _: bytes(64)),
    "payload no JSON": lambda: forge(b"\xff\xfe"),
    "payload a list": lambda: forge([]),
    "payload null": lambda: forge(None),
    "unknown claim": lambda: forge(PAYLOAD | {"rights": ["all"]}),
    "issuer": lambda: forge(PAYLOAD | {"iss": "someone"}),
    "audience": lambda: forge(PAYLOAD | {"aud": "elsewhere"}),
    "audience list": lambda: forge(PAYLOAD | {"aud": ["tenantry-gateway"]}),
    "expired": lambda: forge(PAYLOAD | {"iat": NOW - 60, "exp": NOW}),
    "not yet": lambda: forge(PAYLOAD | {"nbf": NOW + 30}),
    "issued ahead": lambda: forge(PAYLOAD | {"iat": NOW + 30}),
    "a day and a second": lambda: forge(PAYLOAD | {"exp": NOW + 24 * 3600 + 1}),
    "expires before it is issued": lambda: forge(PAYLOAD | {"iat": NOW + 4, "exp": NOW + 3}),
    "exp huge": lambda: forge(PAYLOAD | {"exp": 2**70}),
    "exp float": lambda: forge(PAYLOAD | {"exp": NOW + 0.5}),
    "exp text": lambda: forge(PAYLOAD | {"exp": str(NOW + 60)}),
    "exp null": lambda: forge(PAYLOAD | {"exp": None}),
    "iat negative": lambda: forge(PAYLOAD | {"iat": -1}),
    "attempt zero": lambda: forge(PAYLOAD | {"attempt": 0}),
    "attempt true": lambda: forge(PAYLOAD | {"attempt": True}),
    "attempt text": lambda: forge(PAYLOAD | {"attempt": "1"}),
    "tenant empty": lambda: forge(PAYLOAD | {"tenant": ""}),
    "tenant shaped wrong": lambda: forge(PAYLOAD | {"tenant": "acme|other"}),
    "tenant list": lambda: forge(PAYLOAD | {"tenant": ["acme"]}),
    "oversized": lambda: forge(PAYLOAD | {"run": "r" * 5000}),
    "a megabyte": lambda: "A" * 1_000_000,
    "a megabyte of dots": lambda: "." * 1_000_000,
    "NUL": lambda: forge(PAYLOAD) + "\0",
    "NUL in front": lambda: "\0" + forge(PAYLOAD),
    "space": lambda: forge(PAYLOAD) + " ",
    "newline": lambda: forge(PAYLOAD) + "\n",
    "padded": lambda: forge(PAYLOAD) + "==",
    "lone surrogate": lambda: forge(PAYLOAD) + "\ud800",
    "fullwidth dots": lambda: forge(PAYLOAD).replace(".", "\uff0e"),
    "Cyrillic": lambda: "\u0435" + forge(PAYLOAD)[1:],
    "standard base64": lambda: forge(PAYLOAD).replace("_", "/").replace("-", "+") + "/",
} | {
    f"without {name}": (lambda name=name: forge({k: v for k, v in PAYLOAD.items() if k != name}))
    for name in PAYLOAD
}


@pytest.mark.invariant(1)
@pytest.mark.parametrize("name", HOSTILE)
def test_everything_else_is_refused_alike(name: str, tokens: RunTokens) -> None:
    token = HOSTILE[name]()
    with pytest.raises(UnauthenticatedError) as refused:
        tokens.verify(token)
    with pytest.raises(UnauthenticatedError) as expected:
        tokens.verify("x")
    assert str(refused.value) == str(expected.value)
    assert refused.value.__cause__ is None
    assert tokens.find_cached(token) is None


def test_one_value_has_one_spelling(tokens: RunTokens) -> None:
    """The last character of a 64-byte signature has four bits that say nothing: only one value is taken."""
    token = forge(PAYLOAD)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    accepted = []
    for letter in alphabet:
        try:
            tokens.verify(token[:-1] + letter)
            accepted.append(letter)
        except UnauthenticatedError:
            continue
    assert accepted == [token[-1]]


@given(place=st.integers(0, 400), letter=st.sampled_from("Aa0_-.=~"))
def test_any_one_character_changed_is_refused(place: int, letter: str) -> None:
    token = forge(PAYLOAD)
    place %= len(token)
    if token[place] == letter:
        return
    with pytest.raises(UnauthenticatedError):
        RunTokens(KEY, ManualClock()).verify(token[:place] + letter + token[place + 1 :])


@given(st.text(max_size=200))
def test_arbitrary_text_is_refused(text: str) -> None:
    with pytest.raises(UnauthenticatedError):
        RunTokens(KEY, ManualClock()).verify(text)


def test_a_token_ends_at_its_second_even_when_it_is_remembered(tokens: RunTokens, clock: ManualClock) -> None:
    token = tokens.issue(claims(clock, 60))
    tokens.verify(token)
    clock.advance(59.999)
    tokens.verify(token)
    clock.advance(0.001)
    assert tokens.find_cached(token) is None
    with pytest.raises(UnauthenticatedError):
        tokens.verify(token)


def test_a_clock_that_runs_a_little_ahead_is_borne(tokens: RunTokens) -> None:
    assert tokens.verify(forge(PAYLOAD | {"iat": NOW + module.LEEWAY_S}))
    assert tokens.verify(forge(PAYLOAD | {"nbf": NOW + module.LEEWAY_S}))
    with pytest.raises(UnauthenticatedError):
        tokens.verify(forge(PAYLOAD | {"iat": NOW + module.LEEWAY_S + 1}))


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant_id": ""},
        {"tenant_id": "a|b"},
        {"run_id": ""},
        {"agent_id": "a" * 201},
        {"run_id": "\ud800"},
        {"attempt": 0},
        {"attempt": 2**31},
    ],
)
def test_bad_claims_are_never_signed(
    changes: dict[str, object], tokens: RunTokens, clock: ManualClock
) -> None:
    with pytest.raises(InvalidInputError):
        tokens.issue(claims(clock, 60, changes))


@pytest.mark.parametrize("seconds", [-1, 24 * 3600 + 1])
def test_the_life_of_a_token_is_bounded(seconds: int, tokens: RunTokens, clock: ManualClock) -> None:
    with pytest.raises(InvalidInputError, match="24 hours"):
        tokens.issue(claims(clock, seconds))
    tokens.verify(tokens.issue(claims(clock, 24 * 3600)))


def test_memory_is_bounded_and_a_used_token_stays(
    monkeypatch: pytest.MonkeyPatch, tokens: RunTokens, clock: ManualClock
) -> None:
    monkeypatch.setattr(module, "VERIFIED_MAX", 8)
    issued = [tokens.issue(claims(clock, 60, {"run_id": f"run_{n}"})) for n in range(20)]
    for token in issued:
        tokens.verify(token)
        tokens.verify(issued[0])
    assert sum(tokens.find_cached(token) is not None for token in issued) == 8
    assert tokens.find_cached(issued[0])


def test_the_key_set_holds_the_public_half_only(tokens: RunTokens) -> None:
    (jwk,) = tokens.jwks()["keys"]
    assert set(jwk) == {"kty", "crv", "x", "kid", "use", "alg"}
    assert b64(bytes(range(32))) not in json.dumps(tokens.jwks())


def test_the_key_file_is_made_once_and_shared(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "run-token.jwk"
    first = RunTokens.from_file(path, clock)
    assert path.stat().st_mode & 0o777 == 0o600
    second = RunTokens.from_file(path, clock)
    assert second.verify(first.issue(claims(clock))) == claims(clock)
    other = RunTokens.from_file(tmp_path / "other.jwk", clock)
    with pytest.raises(UnauthenticatedError):
        other.verify(first.issue(claims(clock)))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\xff", b'{"kty":"OKP","crv":"Ed25519","x":"AA","d":"AA"}', b"A" * 20_000],
)
def test_a_broken_key_file_is_named(content: bytes, tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "run-token.jwk"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"run-token\.jwk"):
        RunTokens.from_file(path, clock)


def test_two_halves_that_do_not_match_are_refused(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "run-token.jwk"
    RunTokens.from_file(path, clock)
    jwk = json.loads(path.read_bytes())
    path.write_text(json.dumps(jwk | {"x": STRANGER_X}))
    with pytest.raises(InvalidInputError, match="halves"):
        RunTokens.from_file(path, clock)
