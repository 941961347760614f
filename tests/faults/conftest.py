"""Real platforms for the fault tests: one with three gateways and one with one, shared by the whole run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from tests.support.platform import Platform, serve_platform
from tests.support.platform_probe import Probe


@pytest.fixture(scope="session")
def three_gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with serve_platform(tmp_path_factory.mktemp("books"), gateways=3) as platform:
        yield platform


@pytest.fixture(scope="session")
def one_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with serve_platform(tmp_path_factory.mktemp("books"), gateways=1) as platform:
        yield platform


@pytest.fixture
async def platform(three_gateways: Platform) -> AsyncIterator[Platform]:
    """The shared platform with three gateways; afterwards all are ready, and had no fault that nobody foresaw."""
    three_gateways.model.rules()
    three_gateways.log.clear()
    yield three_gateways
    assert three_gateways.faults() == []
    three_gateways.resume_all()
    await three_gateways.until_ready()


@pytest.fixture
async def client(platform: Platform) -> AsyncIterator[aiohttp.ClientSession]:
    async with platform.client() as opened:
        yield opened


@pytest.fixture
async def probe(platform: Platform) -> AsyncIterator[Probe]:
    async with platform.probe() as opened:
        yield opened
