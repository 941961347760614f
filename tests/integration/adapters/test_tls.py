"""Over TLS: the name is checked, the guard stands before the request, a kill closes at once."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
from pathlib import Path

import aiohttp.connector
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.support.calls import Shut, Sink, tool_call
from tests.support.upstreams import Peer, Upstream, answering

from tenantry.adapters.registry import Adapters
from tenantry.core.action import OutcomeStatus
from tenantry.core.errors import LeaseLapsedError, UpstreamError
from tenantry.registry.specs import HttpActionSpec

READ = HttpActionSpec(risk="read", method="GET", path="/x")
WRITE = HttpActionSpec(risk="write", method="POST", path="/x")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost and 127.0.0.1 that signs itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    day = dt.timedelta(days=1)
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture
def server(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def _trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust it, as the system's store would; all else of the client's checks stays."""
    context = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", context)


async def test_a_certificate_that_nobody_vouches_for(adapters: Adapters, server: ssl.SSLContext) -> None:
    async with Upstream(answering(200), tls=server) as upstream:
        with pytest.raises(UpstreamError, match="certificate") as fault:
            await adapters.perform(tool_call(upstream.url, WRITE), Sink())
        assert not fault.value.sent
        assert not upstream.requests


@pytest.mark.usefixtures("_trusted")
async def test_a_certificate_for_another_name(adapters: Adapters, server: ssl.SSLContext) -> None:
    async with Upstream(answering(200), tls=server) as upstream:
        call = tool_call(f"https://127.0.0.2:{upstream.port}", WRITE)
        with pytest.raises(UpstreamError) as fault:
            await adapters.perform(call, Sink())
        assert not fault.value.sent
        assert not upstream.requests


@pytest.mark.invariant(4)
@pytest.mark.usefixtures("_trusted")
async def test_the_guard_stands_before_the_request(adapters: Adapters, server: ssl.SSLContext) -> None:
    async with Upstream(answering(200), tls=server) as upstream:
        for spec in (READ, WRITE, READ):
            outcome = await adapters.perform(tool_call(upstream.url, spec), Sink())
            assert outcome.status is OutcomeStatus.OK
        assert upstream.connections == 1
        for spec in (READ, WRITE):
            with pytest.raises(LeaseLapsedError):
                await adapters.perform(tool_call(upstream.url, spec, guard=Shut()), Sink())
        assert len(upstream.requests) == 3


@pytest.mark.usefixtures("_trusted")
async def test_a_kill_closes_at_once(adapters: Adapters, server: ssl.SSLContext) -> None:
    async def hangs(peer: Peer) -> None:
        await peer.read_request()
        await peer.until_closed()

    async with Upstream(hangs, tls=server) as upstream:
        task = asyncio.create_task(adapters.perform(tool_call(upstream.url, WRITE), Sink()))
        await upstream.arrived.wait()
        killed_at = asyncio.get_running_loop().time()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await upstream.closed.wait()
        assert upstream.closed_at - killed_at < 0.05


@pytest.mark.usefixtures("_trusted")
async def test_a_downgrade_is_not_followed(adapters: Adapters, server: ssl.SSLContext) -> None:
    async with (
        Upstream(answering(200)) as plain,
        Upstream(answering(302, Location=plain.url), tls=server) as upstream,
    ):
        call = tool_call(upstream.url, READ, allowed_hosts=(f"127.0.0.1:{plain.port}",))
        outcome = await adapters.perform(call, Sink())
        assert outcome.status is OutcomeStatus.FAILED and plain.connections == 0
