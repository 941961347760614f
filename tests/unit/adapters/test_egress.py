"""URLs that two parsers could read two ways are refused; those that are left are read one way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from tenantry.adapters import egress
from tenantry.adapters.egress import EgressRules, Homes, join_url, parse_url
from tenantry.core.errors import EgressDeniedError

REFUSED = [
    "",
    "   ",
    "example.com",
    "//example.com/",
    "/path",
    "http:",
    "http:/",
    "http://",
    "http:///path",
    "http:example.com",
    "http:/example.com",
    "https:///example.com",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/_x",
    "javascript:alert(1)",
    "data:text/plain,x",
    "ws://example.com/",
    "http+unix://%2Fvar%2Frun/x",
    "http://user@example.com/",
    "http://user:pass@example.com/",
    "http://@example.com/",
    "http://allowed.example@evil.example/",
    "http://allowed.example:80@evil.example/",
    "http://evil.example\\@allowed.example/",
    "http://allowed.example\\.evil.example/",
    "http:\\\\example.com\\",
    "http://example.com\\path",
    "http://example.com/a\\b",
    "http://exa mple.com/",
    " http://example.com/",
    "http://example.com/ ",
    "http://example.com/a b",
    "http://example.com/\n",
    "http://example.com/\r\nHost: evil.example",
    "http://exam\tple.com/",
    "http://example.com/\x00",
    "http://example.com/\x7f",
    "http://example.com/\x85",
    "http://example.com/\u2028",
    "http://example.com/\u00a0",
    "http://example.com/\u200b",
    "http://example.com/\u202e",
    "http://example.com/\ud800",
    "http://example\u3002com/",
    "http://example\uff0ecom/",
    "http://\uff11\uff12\uff17.0.0.1/",
    "http://\u2460\u2461\u2466.0.0.1/",
    "http://ex\u00adample.com/",
    "http://a\u200db.com/",
    "http://fa\u00df.de/",
    "http://\u2100.com/",
    "http://example.com%2f@evil.example/",
    "http://%65xample.com/",
    "http://127.0.0.1%00.example.com/",
    "http://exam%00ple.com/",
    "http://[::1%25lo]/",
    "http://[fe80::1%eth0]/",
    "http://[::1/",
    "http://::1/",
    "http://[::1]x/",
    "http://[]/",
    "http://[127.0.0.1]/",
    "http://[v1.x]/",
    "http://[::ffff:0177.0.0.1]/",
    "http://[::g]/",
    "http://2130706433/",
    "http://017700000001/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://127.0.0.1./",
    "http://127.0.0.01/",
    "http://127.0.0.256/",
    "http://1.2.3.4.5/",
    "http://1.2.3/",
    "http://0/",
    "http://0x/",
    "http://example.0x7f/",
    "http://example.123/",
    "http://example.com./",
    "http://.example.com/",
    "http://example..com/",
    "http://-example.com/",
    "http://example-.com/",
    "http://exa$mple.com/",
    "http://exa*mple.com/",
    "http://a," + "b.com/",
    "http://" + "a" * 64 + ".com/",
    "http://" + "a." * 127 + "com/",
    "http://example.com:/",
    "http://example.com:0/",
    "http://example.com:080/",
    "http://example.com:65536/",
    "http://example.com:99999999999/",
    "http://example.com:-1/",
    "http://example.com:+80/",
    "http://example.com:8 0/",
    "http://example.com:80:80/",
    "http://example.com:\uff18\uff10/",
    "http://example.com:http/",
    "http://[::1]:/",
    "http://[::1]:0/",
    "http://[::1]80/",
    "http://example.com/%",
    "http://example.com/%2",
    "http://example.com/%zz",
    "http://example.com/?x=%g0",
    "http://example.com/" + "a" * 8192,
]

READ = {
    "http://example.com": ("http", "example.com", 80, "/", None),
    "HTTP://EXAMPLE.com/": ("http", "example.com", 80, "/", None),
    "https://example.com:8443/a/b?c=d#frag": ("https", "example.com", 8443, "/a/b", "c=d"),
    "https://example.com?x": ("https", "example.com", 443, "/", "x"),
    "https://example.com#@evil.example/": ("https", "example.com", 443, "/", None),
    "https://example.com/@evil.example": ("https", "example.com", 443, "/@evil.example", None),
    "https://example.com?@evil.example/": ("https", "example.com", 443, "/", "@evil.example/"),
    "http://b\u00fccher.example/": ("http", "xn--bcher-kva.example", 80, "/", None),
    "http://B\u00dcCHER.example/": ("http", "xn--bcher-kva.example", 80, "/", None),
    "http://xn--bcher-kva.example/": ("http", "xn--bcher-kva.example", 80, "/", None),
    "http://my_service.internal:8080/": ("http", "my_service.internal", 8080, "/", None),
    "http://127.0.0.1:9/": ("http", "127.0.0.1", 9, "/", None),
    "http://[::1]:8080/": ("http", "::1", 8080, "/", None),
    "http://[0:0:0:0:0:0:0:1]/": ("http", "::1", 80, "/", None),
    "http://[::FFFF:7F00:1]/": ("http", "::ffff:7f00:1", 80, "/", None),
    "http://example.com/%2e%2E/%41": ("http", "example.com", 80, "/%2e%2E/%41", None),
    "http://example.com/caf\u00e9?q=\u00fc": ("http", "example.com", 80, "/caf%C3%A9", "q=%C3%BC"),
    "http://example.com/a{b}|c?d=<e>": ("http", "example.com", 80, "/a%7Bb%7D%7Cc", "d=%3Ce%3E"),
    "http://1e100.net/": ("http", "1e100.net", 80, "/", None),
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    with pytest.raises(EgressDeniedError) as refused:
        parse_url(text)
    assert not refused.value.sent


def test_there_are_enough_refusals() -> None:
    assert len(set(REFUSED)) == len(REFUSED) >= 100


@pytest.mark.parametrize(("text", "parts"), READ.items())
def test_read(text: str, parts: tuple[str, str, int, str, str | None]) -> None:
    url = parse_url(text)
    assert (url.scheme, url.host, url.port, url.path, url.query) == parts
    assert parse_url(url.text) == url


@given(st.text(max_size=60))
def test_any_text_is_refused_or_read_as_the_client_reads_it(text: str) -> None:
    for candidate in (text, "http://" + text, "https://example.com" + text, "http://[" + text):
        try:
            url = parse_url(candidate)
        except EgressDeniedError:
            continue
        client = URL.build(
            scheme=url.scheme,
            authority=url.authority,
            path=url.path,
            query_string=url.query or "",
            encoded=True,
        )
        assert (client.scheme, client.raw_host, client.port) == (url.scheme, url.host, url.port)
        assert client.user is None and client.password is None
        assert (url.path + (f"?{url.query}" if url.query else "")) == client.raw_path_qs
        assert parse_url(url.text) == url


def rules(*hosts: str, base: str = "https://api.example.com/v1", allow_private: bool = False) -> EgressRules:
    return EgressRules.of(parse_url(base), allowed_hosts=hosts, allow_private=allow_private)


@pytest.mark.parametrize(
    ("entries", "url", "allowed"),
    [
        ((), "https://api.example.com/x", True),
        ((), "https://api.example.com:8443/x", False),
        ((), "http://api.example.com/x", False),
        ((), "https://example.com/x", False),
        ((), "https://api.example.com.evil.example/", False),
        ((), "https://evilapi.example.com/", False),
        (("other.example",), "https://other.example/", True),
        (("other.example",), "http://other.example/", True),
        (("other.example",), "http://other.example:8080/", False),
        (("OTHER.example",), "http://other.example/", True),
        (("other.example:8080",), "http://other.example:8080/", True),
        (("other.example:8080",), "http://other.example/", False),
        (("*.example.org",), "https://a.b.example.org/", True),
        (("*.example.org",), "https://example.org/", False),
        (("*.example.org",), "https://evilexample.org/", False),
        (("*.example.org:8443",), "https://a.example.org:8443/", True),
        (("*.example.org:8443",), "https://a.example.org/", False),
        (("*",), "https://anything.example/", True),
        (("*",), "https://anything.example:8080/", False),
        (("*:8080",), "https://anything.example:8080/", True),
        (("*",), "https://8.8.8.8/", False),
        (("8.8.8.8",), "https://8.8.8.8/", True),
        (("[2606:4700::1111]",), "https://[2606:4700:0::1111]/", True),
        (("127.0.0.1",), "http://127.0.0.1/", False),
        (("[::ffff:127.0.0.1]",), "http://[::ffff:127.0.0.1]/", False),
        (("169.254.169.254",), "http://169.254.169.254/latest/meta-data/", False),
    ],
)
def test_allow_list(entries: tuple[str, ...], url: str, allowed: bool) -> None:
    if allowed:
        rules(*entries).check(parse_url(url))
    else:
        with pytest.raises(EgressDeniedError):
            rules(*entries).check(parse_url(url))


@pytest.mark.parametrize(
    "entry", ["", "http://x", "a b", "*x.example", "**.example", "x:0", "x:", "127.1", "[::1", "u@x", "*.*.x"]
)
def test_an_entry_that_cannot_be_read_widens_nothing(entry: str) -> None:
    with pytest.raises(EgressDeniedError, match="allowed_hosts"):
        rules(entry)


def test_private_needs_the_operators_grant_and_metadata_never_gets_it() -> None:
    granted = rules(
        "10.0.0.1", "169.254.169.254", "100.100.100.200", base="http://[::1]:80/", allow_private=True
    )
    granted.check(parse_url("http://[::1]/"))
    granted.check(parse_url("http://10.0.0.1/"))
    for url in ("http://169.254.169.254/", "http://100.100.100.200/"):
        with pytest.raises(EgressDeniedError, match="never"):
            granted.check(parse_url(url))
    for address in ("::1%1", "fe80::1%eth0", "nonsense", "127.1", "", "1.2.3.4\x00"):
        with pytest.raises(EgressDeniedError):
            granted.check_address(address)


@pytest.mark.parametrize(
    ("base", "location", "expected"),
    [
        ("https://a.example/x/y", "z", "https://a.example/x/z"),
        ("https://a.example/x/y", "/z?q=1", "https://a.example/z?q=1"),
        ("https://a.example/x/y", "//b.example/z", "https://b.example/z"),
        ("http://a.example/", "https://a.example/", "https://a.example/"),
        ("http://[::1]:8080/x", "y", "http://[::1]:8080/y"),
        ("http://a.example/", "?q", "http://a.example/?q"),
        ("https://a.example/", "http://a.example/", None),
        ("https://a.example/", "\\\\evil.example", None),
        ("https://a.example/", "https://a.example\\@evil.example/", None),
        ("https://a.example/", "\thttps://evil.example/", None),
        ("https://a.example/", "file:///etc/passwd", None),
        ("https://a.example/", "http:evil", None),
        ("https://a.example/", "//user@evil.example/", None),
        ("https://a.example/", "", None),
        ("http://a.example/", "http://2130706433/", None),
    ],
)
def test_redirects_are_parsed_as_strictly(base: str, location: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(EgressDeniedError):
            join_url(parse_url(base), location)
    else:
        assert join_url(parse_url(base), location).text == expected


def test_homes_are_read_once_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "HOMES_MAX", 3)
    homes = Homes()
    first = homes.read("https://a.example/v1")
    assert homes.read("https://a.example/v1") is first
    assert homes.read("https://a.example/v1", allowed_hosts=("b.example",)) is not first
    for number in range(10):
        homes.read(f"https://h{number}.example/")
    assert len(homes._known) <= 3
    with pytest.raises(EgressDeniedError):
        homes.read("http://127.0.0.1/")
    homes.read("http://127.0.0.1/", allow_private=True)
    with pytest.raises(EgressDeniedError):
        homes.read("http://127.0.0.1/")
