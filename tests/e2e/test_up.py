"""``tenantry up``: one line when it serves, one on each data folder, nothing left however it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.e2e.platforms import (
    EXAMPLES,
    Platform,
    data_folder,
    is_running,
    launch,
    run_cli,
    serving,
    wait_until,
)

from tenantry.storage.embedded import EmbeddedPostgres


def test_it_serves_and_says_where(platform: Platform) -> None:
    assert platform.url.startswith("http://127.0.0.1:")
    assert platform.get("/healthz")[0] == 200
    assert platform.get("/readyz")[0] == 200
    assert platform.get("/nothing-here")[0] == 404


def test_control_has_its_own_port_and_a_private_socket(platform: Platform) -> None:
    address = json.loads((platform.data / "address.json").read_bytes())
    assert address["url"] == platform.url
    port = int(platform.url.rpartition(":")[2])
    assert address["control_url"] == f"http://127.0.0.1:{port + 1}"
    found = (platform.data / "control.sock").stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600


def test_keys_and_folder_are_private(platform: Platform) -> None:
    assert stat.S_IMODE(platform.data.stat().st_mode) == 0o700
    for name in ("operator.key", "root.key", "run-token.jwk"):
        assert stat.S_IMODE((platform.data / name).stat().st_mode) == 0o600


def test_a_second_up_on_the_same_folder_is_refused(platform: Platform) -> None:
    second = run_cli("up", "--data", str(platform.data), "--port", "0")
    assert second.status == 1
    assert f"process {platform.process.pid}" in second.err
    assert platform.get("/readyz")[0] == 200


def test_a_foreign_host_is_refused(platform: Platform) -> None:
    host, port = platform.url.removeprefix("http://").split(":")
    for at in (int(port), int(port) + 1):
        with socket.create_connection((host, at), timeout=10) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
            answer = connection.recv(4096)
        assert b" 421 " in answer.split(b"\r\n")[0], answer


def test_its_processes_start_again_and_end_with_it(start: Callable[..., Platform]) -> None:
    with data_folder() as data:
        served = start(data, "--ephemeral", "--gateways", "2")
        before = served.children()
        assert len(before) == 4, "the database, control and two gateways"
        gateway = before[-1]
        os.kill(gateway, signal.SIGKILL)
        wait_until(lambda: len(served.children()) == 4 and gateway not in served.children())
        wait_until(lambda: served.get("/readyz")[0] == 200)
        children = served.children()
        assert served.end(signal.SIGINT) == 0
        assert not [pid for pid in children if is_running(pid)]
        assert not (data / "address.json").exists()
        assert not (data / "control.sock").exists()


@pytest.mark.timeout(120)
def test_killed_it_leaves_nothing_running_and_starts_again(fleet_variables: dict[str, str]) -> None:
    with data_folder() as data:
        with serving(data) as served:
            applied = served.cli("apply", str(EXAMPLES / "fleet.yaml"), "--json", env=fleet_variables)
            assert applied.status == 0, applied.err
            children = served.children()
            served.process.kill()
            served.process.wait()
            wait_until(lambda: not [pid for pid in children if is_running(pid)], 20)
        with serving(data) as served:
            listed = served.cli("tenant", "list", "--json")
            assert {row["tenant_id"] for row in listed.json()["tenants"]} == {"borealis", "cirrus", "dunes"}
            # What is open when it is told to stop is finished first.
            run = served.cli("run", "start", "steady", "--tenant", "cirrus", "--json").json()
            with open_stream(run, "!tokens=30 !delay_ms=50") as stream:
                assert b"data:" in stream.readline()
                served.process.terminate()
                rest = stream.read()
            assert rest.endswith(b"data: [DONE]\n\n")
            assert served.process.wait(30) == 0


@contextlib.contextmanager
def open_stream(run: dict[str, Any], prompt: str) -> Iterator[http.client.HTTPResponse]:
    """A streamed model call of an external run, its answer begun."""
    host, port = run["doors"]["openai_base_url"].removeprefix("http://").removesuffix("/v1").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    body = {
        "model": "example-small",
        "stream": True,
        "max_tokens": 64,
        "messages": [{"role": "user", "content": prompt}],
    }
    headers = {"authorization": f"Bearer {run['token']}", "content-type": "application/json"}
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        with connection.getresponse() as answer:
            assert answer.status == 200, answer.read()
            yield answer


@pytest.mark.timeout(120)
def test_an_external_database_is_used(fleet_variables: dict[str, str]) -> None:
    with data_folder() as parent, data_folder() as data:
        database = EmbeddedPostgres(parent, ephemeral=True)
        try:
            endpoint = database.start()
            place = quote(str(endpoint.socket_dir), safe="")
            url = f"postgresql://{endpoint.superuser}:hunter2@localhost:{endpoint.port}/{endpoint.database}?host={place}"
            with serving(data, env={"TENANTRY_DATABASE_URL": url}) as served:
                applied = served.cli("apply", str(EXAMPLES / "fleet.yaml"), "--json", env=fleet_variables)
                assert applied.status == 0, applied.err
                commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in served.children()]
                assert len(commands) == 2, "control and a gateway, no database of ours"
                assert not [command for command in commands if b"hunter2" in command]
                assert not (data / "postgres.json").exists()
        finally:
            database.stop()


def test_it_ends_with_whoever_started_it(start: Callable[..., Platform]) -> None:
    with data_folder() as data:
        served = start(data, "--ephemeral")
        assert served.process.stdin is not None
        served.process.stdin.close()
        assert served.process.wait(30) == 0


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, data_folder() as data:
        port = taken.getsockname()[1]
        done = run_cli("up", "--data", str(data), "--port", str(port), "--ephemeral")
    assert done.status == 1
    assert str(port) in done.err


@pytest.mark.parametrize(
    ("options", "env", "status", "said"),
    [
        ((), {"TENANTRY_PORT": "many"}, 2, "TENANTRY_PORT"),
        ((), {"TENANTRY_LOG_LEVEL": "loud"}, 2, "TENANTRY_LOG_LEVEL"),
        ((), {"TENANTRY_DATABASE_URL": "mysql://u:hunter2@h/d"}, 2, "postgresql://"),
        (("--host", "no.such.host.invalid"), {}, 2, "--host"),
        (("--nonsense",), {}, 2, "nonsense"),
    ],
)
def test_bad_settings_are_told(options: tuple[str, ...], env: dict[str, str], status: int, said: str) -> None:
    with data_folder() as data:
        done = run_cli("up", "--data", str(data), *options, env={"TENANTRY_PORT": "0", **env})
    assert done.status == status, done.err
    assert said in done.err
    assert "hunter2" not in done.err
    assert "Traceback" not in done.err


def test_a_folder_that_others_may_write_to_is_refused() -> None:
    with data_folder() as data:
        data.mkdir()
        data.chmod(0o777)
        done = run_cli("up", "--data", str(data), "--port", "0")
    assert done.status == 1
    assert "chmod go-w" in done.err


def test_stopped_while_it_starts_it_ends_in_order() -> None:
    with data_folder() as data:
        process = launch(data, "--ephemeral")
        assert process.stderr is not None
        assert "database: starting" in process.stderr.readline()
        process.terminate()
        _, err = process.communicate(timeout=40)
        assert process.returncode == 0, err
        assert "Traceback" not in err
