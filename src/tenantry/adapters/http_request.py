"""From a declared action and its input to the request that will be sent.

Pure; refuses what could mean two things.
"""

from __future__ import annotations

import base64
from typing import Final
from urllib.parse import quote, unquote, urlencode

import msgspec

from tenantry.adapters.egress import EgressRules, Url, parse_url
from tenantry.adapters.exchange import OutRequest, header_value
from tenantry.core.action import Action
from tenantry.core.errors import EgressDeniedError, UpstreamError
from tenantry.registry.specs import AuthSpec, HttpActionSpec

_BODILESS: Final = frozenset({"GET", "DELETE"})
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


class Plan(msgspec.Struct, frozen=True):
    """A request without its credential, the rules it is under, and where the credential may go."""

    request: OutRequest
    rules: EgressRules
    home: Url

    def with_credential(self, request: OutRequest, headers: tuple[tuple[str, str], ...]) -> OutRequest:
        """The request with `headers`, if it goes to the integration's own origin and nowhere else."""
        if request.url.origin != self.home.origin:
            return request
        return msgspec.structs.replace(request, headers=request.headers + headers)


def plan_request(home: Url, rules: EgressRules, spec: HttpActionSpec, action: Action) -> Plan:
    """Build the request to an integration at `home`.

    Without ``url_from_input``, fields of the input are the query of GET and DELETE, and the input is the body of
    the others. Raises `EgressDeniedError` for a destination outside of `rules`, and for input that no request can
    carry: that is a refusal, and no fault of the upstream that another try could meet.
    """
    if spec.url_from_input is not None:
        url, body = _fetch_of(spec, action)
    else:
        url, body = _call_of(home, spec, action)
    if url.origin != home.origin:
        rules.check(url)
    # What policy decided on is where it goes: another parser's reading of the URL gets no further than this.
    if action.destination is not None and action.destination not in {
        url.host,
        f"[{url.host}]",
        url.authority,
    }:
        raise EgressDeniedError("the destination differs from the one that policy decided on")
    headers = [("Accept", "application/json, */*;q=0.5")]
    if body is not None:
        headers.append(("Content-Type", "application/json"))
    if spec.idempotency_header is not None:
        key = action.idempotency_key or action.action_id
        headers.append((spec.idempotency_header, header_value(key, spec.idempotency_header)))
    return Plan(OutRequest(spec.method, url, tuple(headers), body), rules, home)


def credential_headers(auth: AuthSpec | None, secret: str | None) -> tuple[tuple[str, str], ...]:
    """The header that presents the credential.

    Raises `UpstreamError` when one is declared and none was given.
    """
    if auth is None:
        return ()
    if secret is None:
        raise UpstreamError(f"the credential {auth.secret!r} is needed and was not given", sent=False)
    if auth.scheme == "bearer":
        value = f"Bearer {header_value(secret, auth.header)}"
    elif auth.scheme == "basic":
        value = f"Basic {base64.b64encode(secret.encode()).decode()}"
    else:
        value = header_value(secret, auth.header)
    return ((auth.header, value),)


def secrets_of(auth: AuthSpec | None, secret: str | None) -> tuple[str, ...]:
    """What must not come back: the credential, and the password alone where it is ``user:password``."""
    if secret is None:
        return ()
    if auth is not None and auth.scheme == "basic":
        return (secret, secret.partition(":")[2])
    return (secret,)


def _fetch_of(spec: HttpActionSpec, action: Action) -> tuple[Url, bytes | None]:
    fields = _fields_of(action.input)
    text = fields.pop(spec.url_from_input or "", None)
    if not isinstance(text, str):
        raise EgressDeniedError(f"the input's field {spec.url_from_input!r} is not a URL")
    url = parse_url(text)
    return url, None if spec.method in _BODILESS or not fields else _ENCODER.encode(fields)


def _call_of(home: Url, spec: HttpActionSpec, action: Action) -> tuple[Url, bytes | None]:
    path = spec.path
    if "{record_id}" in path:
        path = path.replace("{record_id}", _segment(action.target.record_id))
    if path and not path.startswith("/"):
        path = "/" + path
    # The declared path may hold a query; parsing the whole again keeps to the one parser.
    url = parse_url(f"{home.scheme}://{home.authority}{home.path.rstrip('/')}{path}")
    if spec.method not in _BODILESS:
        return url, action.input or b"{}"
    added = _query_of(_fields_of(action.input))
    query = "&".join(part for part in (url.query, added) if part)
    return msgspec.structs.replace(url, query=query or None), None


def _segment(record_id: str) -> str:
    """One path segment that stays one: no escape of it, read once or twice, climbs or splits the path."""
    read = unquote(unquote(record_id))
    parts = read.replace("\\", "/").split("/")
    if not record_id or any(part in {".", ".."} for part in parts) or not read.isprintable():
        raise EgressDeniedError("the record id cannot stand in a path")
    try:
        return quote(record_id, safe="")
    except UnicodeEncodeError:
        raise EgressDeniedError("the record id is not text that UTF-8 can write") from None


def _fields_of(data: bytes) -> dict[str, object]:
    try:
        fields = msgspec.json.decode(data or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise EgressDeniedError("the input is not a JSON object")
    return fields


def _query_of(fields: dict[str, object]) -> str:
    pairs: list[tuple[str, str]] = []
    for name, value in fields.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict | list):
                raise EgressDeniedError(f"the input's field {name!r} is too deep for a query")
            if item is not None:
                pairs.append((name, item if isinstance(item, str) else msgspec.json.encode(item).decode()))
    return urlencode(pairs, quote_via=quote)
