"""Where an action may go: one strict parser, one allow-list, one look-up of names (DESIGN §10).

A destination is decided on as text, looked up once for each new connection, and connected to at exactly the
addresses that were checked; nothing between the check and the socket parses or resolves again. Redirects are
destinations like any other.

Allow-list entries are ``host``, ``host:port``, ``*.domain`` and ``*`` (with a port too); without a port they
mean 80 and 443. The host of an integration's ``base_url`` is always in, at its own port. Wildcards never
match a literal address.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from typing import Final
from urllib.parse import quote, urljoin

import msgspec

from tenantry.adapters.addresses import AddressClass, classify
from tenantry.core.errors import EgressDeniedError

URL_CHARS_MAX: Final = 8192
HOMES_MAX: Final = 1_000
_PORTS: Final = {"http": 80, "https": 443}
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.DOTALL)
_BRACKETED: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::(.*))?", re.DOTALL)
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_KEPT: Final = "%/:?[]@!$&'()*+,;=~"


class Url(msgspec.Struct, frozen=True):
    """A checked URL.

    ``host`` is lower-case ASCII, an address in its canonical form and without brackets; ``path`` begins with
    a slash; ``path`` and ``query`` are percent-encoded; there is no user and no fragment.
    """

    scheme: str
    host: str
    port: int
    path: str
    query: str | None

    @property
    def origin(self) -> tuple[str, str, int]:
        """What a credential belongs to (RFC 6454)."""
        return (self.scheme, self.host, self.port)

    @property
    def authority(self) -> str:
        """Host and port, always both, as a URL writes them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def text(self) -> str:
        """The whole URL; a port that the scheme implies is left out."""
        authority = self.authority
        if _PORTS[self.scheme] == self.port:
            authority = authority[: authority.rindex(":")]
        query = "" if self.query is None else f"?{self.query}"
        return f"{self.scheme}://{authority}{self.path}{query}"


def parse_url(text: str) -> Url:
    """Parse an absolute http or https URL.

    Raises `EgressDeniedError` for whatever two parsers could read two ways.
    """
    _check_characters(text)
    match = _URL.fullmatch(text)
    if match is None:
        raise EgressDeniedError("a URL begins with http:// or https:// and a host")
    scheme = match[1].lower()
    if scheme not in _PORTS:
        raise EgressDeniedError("a URL begins with http:// or https://; no other scheme is spoken")
    host, port = _parse_authority(match[2], _PORTS[scheme])
    query = None if match[4] is None else _encode(match[4])
    return Url(scheme, host, port, _encode(match[3]) or "/", query)


def join_url(base: Url, reference: str) -> Url:
    """The URL that a ``Location`` names, seen from `base`.

    Raises `EgressDeniedError`; never steps down to http.
    """
    _check_characters(reference)
    target = parse_url(urljoin(base.text, reference))
    if base.scheme == "https" and target.scheme == "http":
        raise EgressDeniedError("a redirect from https to http is not followed")
    return target


def parse_host(text: str) -> str:
    """The canonical form of a host name or address. Raises `EgressDeniedError`."""
    host = text.lower()
    if not host.isascii():
        host = _to_ascii(host)
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(host))
        except AddressValueError:
            raise EgressDeniedError("an IPv4 address is written as four plain decimal numbers") from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise EgressDeniedError("the host is not a name that DNS can hold")
    return host


class EgressRules(msgspec.Struct, frozen=True):
    """What one integration or provider may reach.

    ``exact`` holds (host, port); ``suffixes`` holds (".domain" or "", port) and matches names only. A port of
    None means 80 and 443.
    """

    exact: frozenset[tuple[str, int | None]]
    suffixes: tuple[tuple[str, int | None], ...]
    allow_private: bool

    @classmethod
    def of(
        cls, base: Url, *, allowed_hosts: tuple[str, ...] = (), allow_private: bool = False
    ) -> EgressRules:
        """The rules of a base URL and the hosts beside it.

        Raises `EgressDeniedError` for an entry it cannot read.
        """
        exact: set[tuple[str, int | None]] = {(base.host, base.port)}
        suffixes: list[tuple[str, int | None]] = []
        for entry in allowed_hosts:
            host, port = _parse_entry(entry)
            if host.startswith("*"):
                suffixes.append((host[1:], port))
            else:
                exact.add((host, port))
        return cls(frozenset(exact), tuple(suffixes), allow_private)

    def check(self, url: Url) -> None:
        """Raise `EgressDeniedError` unless host and port are listed and a literal address may be reached."""
        is_literal = _is_literal(url.host)
        if is_literal:
            self.check_address(url.host)
        is_usual = url.port in _PORTS.values()
        if (url.host, url.port) in self.exact or (is_usual and (url.host, None) in self.exact):
            return
        for suffix, port in () if is_literal else self.suffixes:
            if url.host.endswith(suffix) and (port == url.port or (port is None and is_usual)):
                return
        raise EgressDeniedError(f"{url.authority} is not among the hosts that this integration may reach")

    def check_address(self, address: str) -> None:
        """Raise `EgressDeniedError` for an address that may not be reached; names its class alone."""
        try:
            found = classify(ip_address(address))
        except ValueError:
            found = AddressClass.FORBIDDEN
        if found is AddressClass.FORBIDDEN:
            raise EgressDeniedError("the destination's address is of a kind that is never connected to")
        if found is AddressClass.PRIVATE and not self.allow_private:
            raise EgressDeniedError(
                "the destination's address is private; the operator may set allow_private"
            )


class Homes:
    """Base URLs read before, with their rules: a declaration is parsed once and not for each action.

    Holds at most `HOMES_MAX`, and starts anew above that.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[str, ...], bool], tuple[Url, EgressRules]] = {}

    def read(
        self, base_url: str, *, allowed_hosts: tuple[str, ...] = (), allow_private: bool = False
    ) -> tuple[Url, EgressRules]:
        """The base URL and its rules, under which it may itself be reached. Raises `EgressDeniedError`."""
        key = (base_url, allowed_hosts, allow_private)
        found = self._known.get(key)
        if found is None:
            home = parse_url(base_url)
            rules = EgressRules.of(home, allowed_hosts=allowed_hosts, allow_private=allow_private)
            rules.check(home)
            if len(self._known) >= HOMES_MAX:
                self._known.clear()
            found = self._known[key] = (home, rules)
        return found


def _check_characters(text: str) -> None:
    if not text or len(text) > URL_CHARS_MAX:
        raise EgressDeniedError(f"a URL has 1 to {URL_CHARS_MAX} characters")
    for char in text:
        if char == "\\" or char.isspace() or not char.isprintable():
            raise EgressDeniedError("a URL holds no backslash, white space or control character; encode them")
    if _BAD_ESCAPE.search(text):
        raise EgressDeniedError("a per cent sign in a URL is followed by two hexadecimal digits")


def _parse_authority(text: str, default_port: int) -> tuple[str, int]:
    if "@" in text:
        raise EgressDeniedError("a URL names no user and no password")
    if "%" in text:
        raise EgressDeniedError("a host is written plainly: no escapes and no zone id")
    if text.startswith("["):
        match = _BRACKETED.fullmatch(text)
        if match is None:
            raise EgressDeniedError("the host is not an IPv6 address in brackets")
        try:
            host = str(IPv6Address(match[1]))
        except AddressValueError:
            raise EgressDeniedError("the host is not an IPv6 address in brackets") from None
        port_text: str | None = match[2]
    else:
        name, colon, rest = text.partition(":")
        host, port_text = parse_host(name), rest if colon else None
    return host, default_port if port_text is None else _parse_port(port_text)


def _parse_port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise EgressDeniedError("a port is a plain number from 1 to 65535")
    return int(text)


def _parse_entry(entry: str) -> tuple[str, int | None]:
    try:
        if entry.startswith("*"):
            name, colon, port = entry[1:].partition(":")
            if name:
                name = "." + parse_host(name.removeprefix("."))
                if not entry.startswith("*."):
                    raise EgressDeniedError("a star stands for whole labels")
            return "*" + name, _parse_port(port) if colon else None
        # Nothing listens at port 0, so it can stand for 'no port was written'.
        host, port_number = _parse_authority(entry, 0)
    except EgressDeniedError as denied:
        raise EgressDeniedError(f"allowed_hosts: {entry!r} is not an entry: {denied}") from None
    return host, port_number or None


def _encode(text: str) -> str:
    try:
        return quote(text, safe=_KEPT)
    except UnicodeEncodeError:
        raise EgressDeniedError("a URL is text that UTF-8 can write") from None


def _to_ascii(host: str) -> str:
    """IDNA, only for names that it leaves as they are: what it would map, two parsers could read two ways."""
    try:
        encoded = host.encode("idna")
        if encoded.decode("idna") == host:
            return encoded.decode("ascii")
    except UnicodeError:
        pass
    raise EgressDeniedError("the host is not a valid internationalised name; write it in its xn-- form")


def _is_literal(host: str) -> bool:
    return ":" in host or _NUMBER.fullmatch(host.rsplit(".", 1)[-1]) is not None
