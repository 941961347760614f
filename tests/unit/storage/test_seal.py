from __future__ import annotations

import asyncio
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.core.clock import SystemClock
from tenantry.core.errors import NotFoundError
from tenantry.core.ids import TenantId
from tenantry.storage.errors import SealBrokenError
from tenantry.storage.seal import (
    CACHED_KEY_S,
    SEAL_OVERHEAD_BYTES,
    DataKey,
    KeyRing,
    RootKey,
    RootKeyError,
    WrappedKeys,
    associated_data,
)

TENANT = TenantId("acme")
KEY = DataKey(TENANT, {1: b"k" * 32})
ROOT = RootKey(b"r" * 32)


class SteppedClock(SystemClock):
    def __init__(self) -> None:
        self.at = 1000.0

    def monotonic(self) -> float:
        return self.at


def seal(text: bytes, *, key: DataKey = KEY, table: str = "journal", row_id: str = "act_1") -> bytes:
    return key.seal(text, table=table, row_id=row_id, nonce=os.urandom(12))


@given(st.binary(max_size=2000), st.text(max_size=50))
def test_what_was_sealed_opens_and_is_longer_by_a_constant(text: bytes, row_id: str) -> None:
    sealed = seal(text, row_id=row_id)
    assert len(sealed) == len(text) + SEAL_OVERHEAD_BYTES
    assert KEY.unseal(sealed, table="journal", row_id=row_id) == text


@given(st.integers(0, 41), st.integers(1, 255))
def test_any_changed_byte_breaks_the_seal(place: int, change: int) -> None:
    sealed = bytearray(seal(b"a secret!"))
    sealed[place] ^= change
    with pytest.raises(SealBrokenError):
        KEY.unseal(bytes(sealed), table="journal", row_id="act_1")


@pytest.mark.parametrize("length", [0, 1, 5, 17, 32])
def test_cut_bytes_do_not_open(length: int) -> None:
    with pytest.raises(SealBrokenError):
        KEY.unseal(seal(b"")[:length], table="journal", row_id="act_1")


@pytest.mark.invariant(12)
def test_another_tenant_table_or_row_does_not_open_even_with_the_same_key() -> None:
    sealed = seal(b"text")
    with pytest.raises(SealBrokenError):
        DataKey(TenantId("globex"), {1: b"k" * 32}).unseal(sealed, table="journal", row_id="act_1")
    for table, row_id in (("secrets", "act_1"), ("journal", "act_2"), ("journal", ""), ("journal", "act_1|")):
        with pytest.raises(SealBrokenError):
            KEY.unseal(sealed, table=table, row_id=row_id)


def test_no_two_rows_share_associated_data() -> None:
    with pytest.raises(AssertionError):
        associated_data(TENANT, "a|b", "c")
    assert associated_data(TENANT, "a", "b|c") != associated_data(TENANT, "b", "a|c")
    assert associated_data(TENANT, "a", "\ud800")


def test_rotation_seals_under_the_newest_and_opens_all() -> None:
    old = seal(b"old")
    rotated = DataKey(TENANT, {1: b"k" * 32, 2: b"n" * 32})
    new = seal(b"new", key=rotated)
    assert rotated.unseal(old, table="journal", row_id="act_1") == b"old"
    assert rotated.unseal(new, table="journal", row_id="act_1") == b"new"
    with pytest.raises(SealBrokenError):
        KEY.unseal(new, table="journal", row_id="act_1")


def test_a_wrapped_key_opens_for_its_tenant_version_and_root_only() -> None:
    wrapped = ROOT.wrap(b"d" * 32, tenant_id=TENANT, key_version=1, nonce=os.urandom(12))
    assert ROOT.unwrap(wrapped, tenant_id=TENANT, key_version=1) == b"d" * 32
    for root, tenant, version in ((ROOT, "globex", 1), (ROOT, "acme", 2), (RootKey(b"x" * 32), "acme", 1)):
        with pytest.raises(SealBrokenError):
            root.unwrap(wrapped, tenant_id=TenantId(tenant), key_version=version)


def test_keys_do_not_show() -> None:
    assert "r" * 8 not in repr(ROOT) and "k" * 8 not in repr(KEY)


# ---------------------------------------------------------------------------------------------- the root file


def test_the_root_key_is_made_once_and_only_for_us(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    first = RootKey.from_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert RootKey.from_file(path).derive("x") == first.derive("x") != first.derive("y")
    assert [entry.name for entry in tmp_path.iterdir()] == ["root.key"]


def test_many_starters_get_one_root_key(tmp_path: Path) -> None:
    found: list[bytes] = []
    gate = threading.Barrier(8)

    def start() -> None:
        gate.wait()
        found.append(RootKey.from_file(tmp_path / "root.key").derive("x"))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["root.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_a_root_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "root.key"
    RootKey.from_file(path)
    path.chmod(mode)
    with pytest.raises(RootKeyError, match="chmod 600"):
        RootKey.from_file(path)


def test_links_pipes_folders_and_absent_files_are_refused(tmp_path: Path) -> None:
    RootKey.from_file(tmp_path / "real.key")
    (tmp_path / "link.key").symlink_to(tmp_path / "real.key")
    (tmp_path / "dangling.key").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.key").mkdir()
    os.mkfifo(tmp_path / "pipe.key", 0o600)
    for name in ("link.key", "dangling.key", "folder.key", "pipe.key"):
        with pytest.raises(RootKeyError):
            RootKey.from_file(tmp_path / name)
    with pytest.raises(RootKeyError, match="backup"):
        RootKey.from_file(tmp_path / "absent.key", create=False)
    with pytest.raises(RootKeyError, match="cannot make"):
        RootKey.from_file(tmp_path / "no" / "folder.key")


@pytest.mark.parametrize("content", [b"", b"short", b"!" * 44, b"\xff" * 44, b"A" * 43, b"A" * 2000, b"\0"])
def test_a_damaged_root_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "root.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(RootKeyError, match="restore"):
        RootKey.from_file(path)
    assert path.read_bytes() == content


# --------------------------------------------------------------------------------------------------- the ring


class Loader:
    def __init__(self) -> None:
        self.calls = 0
        self.rows: dict[TenantId, WrappedKeys] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, tenant_id: TenantId) -> WrappedKeys:
        self.calls += 1
        await self.gate.wait()
        return self.rows.get(tenant_id, ())


async def test_many_askers_load_a_key_once_and_its_age_is_bounded() -> None:
    loader, clock = Loader(), SteppedClock()
    ring = KeyRing(loader, ROOT, clock)
    loader.rows[TENANT] = [(1, ring.new_wrapped(TENANT, 1))]
    assert ring.cached(TENANT) is None
    loader.gate.clear()
    asked = [asyncio.create_task(ring.data_key(TENANT)) for _ in range(20)]
    await asyncio.sleep(0)
    asked[0].cancel()
    loader.gate.set()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(result, DataKey) for result in results) == 19
    assert loader.calls <= 2
    calls = loader.calls
    await ring.data_key(TENANT)
    assert loader.calls == calls
    clock.at += CACHED_KEY_S + 1
    assert ring.cached(TENANT) is None
    await ring.data_key(TENANT)
    assert loader.calls == calls + 1


async def test_a_destroyed_key_is_forgotten() -> None:
    loader = Loader()
    ring = KeyRing(loader, ROOT, SystemClock())
    loader.rows[TENANT] = [(1, ring.new_wrapped(TENANT, 1))]
    await ring.data_key(TENANT)
    del loader.rows[TENANT]
    ring.forget(TENANT)
    with pytest.raises(NotFoundError):
        await ring.data_key(TENANT)


async def test_the_ring_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenantry.storage.seal.CACHED_KEYS_MAX", 3)
    loader = Loader()
    ring = KeyRing(loader, ROOT, SystemClock())
    tenants = [TenantId(f"tenant_{number}") for number in range(5)]
    for tenant in tenants:
        loader.rows[tenant] = [(1, ring.new_wrapped(tenant, 1))]
        await ring.data_key(tenant)
    assert [ring.cached(tenant) is not None for tenant in tenants] == [False, False, True, True, True]
