"""The control plane over HTTP: keys, roles, strictness, one face for what is foreign and what is not there."""

from __future__ import annotations

import asyncio
import itertools

import msgspec
from tests.integration.api.support import Api
from tests.integration.control.support import READS, VALUES, fleet_file

from tenantry.api.routes import ENDPOINTS


async def test_the_fleet_is_applied_compared_and_exported(api: Api) -> None:
    await api.apply()
    again = await api.send("POST", "/api/v1/fleet/apply", {"fleet": fleet_file(), "values": VALUES})
    assert again.json["changed"] is False
    exported = await api.send("GET", "/api/v1/fleet/export")
    assert b"tk-borealis" not in exported.body
    diff = await api.send("POST", "/api/v1/fleet/diff", {"fleet": exported.json})
    assert diff.json == {"items": [], "next": None}
    bad = fleet_file()
    bad["tenants"]["borealis"]["agents"]["triage"]["workspace"] = "nowhere"
    refused = await api.send("POST", "/api/v1/fleet/apply", {"fleet": bad, "values": VALUES})
    assert refused.status == 400
    assert refused.json["path"] == "$.tenants.borealis.agents.triage.workspace"


async def test_a_tenant_admin_sees_and_does_its_own(api: Api) -> None:
    await api.apply()
    admin = await api.key("borealis")
    me = await api.send("GET", "/api/v1/whoami", key=admin)
    assert me.json["tenant_id"] == "borealis" and "tenant.switch" in me.json["rights"]
    listed = await api.send("GET", "/api/v1/tenants", key=admin)
    assert [t["tenant_id"] for t in listed.json["items"]] == ["borealis"]
    tenant = await api.send("GET", "/api/v1/tenants/borealis", key=admin)
    assert tenant.json["spec"]["agents"]["triage"]["workspace"] == "support"
    quotas = await api.send("GET", "/api/v1/tenants/borealis/quotas", key=admin)
    meters = {(m["meter"]["level"], m["meter"]["name"]): m for s in quotas.json["items"] for m in s["meters"]}
    assert meters["tenant", "tool_calls_day"]["limit"] == 100
    assert meters["tenant", "requests"]["limit"] == 600
    assert meters["agent", "tool_calls_day"]["limit"] is None
    for path in ("runs", "journal", "keys", "secrets", "incidents", "policies", "policies/history"):
        reply = await api.send("GET", f"/api/v1/tenants/borealis/{path}", key=admin)
        assert reply.status == 200, (path, reply.body)


async def test_what_is_foreign_and_what_never_was_get_the_same_bytes(api: Api) -> None:
    await api.apply()
    admin = await api.key("borealis")
    foreign_key = (await api.send("GET", "/api/v1/tenants/dunes/keys")).json["items"]
    assert foreign_key == []
    other = await api.key("dunes")
    other_id = (await api.send("GET", "/api/v1/tenants/dunes/keys")).json["items"][0]["key_id"]
    assert other
    paths = [
        ("GET", "/api/v1/tenants/{}"),
        ("GET", "/api/v1/tenants/{}/keys"),
        ("GET", "/api/v1/tenants/{}/secrets"),
        ("GET", "/api/v1/tenants/{}/quotas"),
        ("GET", "/api/v1/tenants/{}/runs"),
        ("GET", "/api/v1/tenants/{}/runs/wr_0123456789"),
        ("GET", "/api/v1/tenants/{}/journal"),
        ("GET", "/api/v1/tenants/{}/journal/act_0123456789"),
        ("GET", "/api/v1/tenants/{}/incidents"),
        ("GET", "/api/v1/tenants/{}/policies"),
        ("GET", "/api/v1/tenants/{}/policies/history"),
        ("GET", "/api/v1/tenants/{}/policies/history/1"),
        ("DELETE", "/api/v1/tenants/{}/keys/" + other_id),
    ]
    bodies = set()
    for method, path in paths:
        for tenant in ("dunes", "nobody", "x'; drop", "%00", "%F0%9F%92%A9", "A" * 500):
            reply = await api.send(method, path.format(tenant), key=admin)
            assert reply.status == 404, (path, tenant, reply.body)
            bodies.add((reply.body, tuple(sorted(k for k in reply.headers if k != "date"))))
    own = [
        "/api/v1/tenants/borealis/runs/wr_0",
        "/api/v1/tenants/borealis/journal/act_0",
        "/api/v1/tenants/borealis/policies/history/999",
        "/api/v1/tenants/borealis/policies/history/x",
        "/api/v1/nothing",
        "/nothing",
    ]
    for path in own:
        reply = await api.send("GET", path, key=admin)
        assert reply.status == 404, (path, reply.body)
        bodies.add((reply.body, tuple(sorted(k for k in reply.headers if k != "date"))))
    assert len(bodies) == 1
    gone = await api.send("DELETE", f"/api/v1/tenants/borealis/keys/{other_id}", key=admin)
    assert gone.status == 404
    bodies.add((gone.body, tuple(sorted(k for k in gone.headers if k != "date"))))
    assert len(bodies) == 1


async def test_switches_and_their_history(api: Api) -> None:
    await api.apply()
    admin = await api.key("borealis")
    kill = {"level": "agent", "verb": "kill", "subject_id": "triage", "reason": "runaway"}
    killed = await api.send("POST", "/api/v1/switches", kill, key=admin)
    assert killed.status == 200
    assert killed.json["confirmed_at"] is not None
    assert [answer["answer"] for answer in killed.json["instances"]] == ["acknowledged"]
    tenant = await api.send("GET", "/api/v1/tenants/borealis", key=admin)
    assert [(s["level"], s["subject_id"]) for s in tenant.json["stopped"]] == [("agent", "triage")]
    foreign = await api.send("POST", "/api/v1/switches", {**kill, "tenant_id": "dunes"}, key=admin)
    assert foreign.status == 404
    viewer = await api.key("borealis", "viewer")
    refused = await api.send("POST", "/api/v1/switches", kill, key=viewer)
    assert refused.status == 403 and "tenant.switch" in refused.json["detail"]
    history = await api.send("GET", "/api/v1/switches?limit=1", key=admin)
    assert history.json["items"][0]["verb"] == "kill" and history.json["next"] is not None
    rest = await api.send("GET", f"/api/v1/switches?after={history.json['next']}", key=admin)
    assert rest.json["items"] == []
    nothing = await api.send("GET", "/api/v1/switches", key=await api.key("dunes"))
    assert nothing.json["items"] == []


async def test_policies_are_checked_activated_frozen_and_rolled_back(api: Api) -> None:
    await api.apply()
    admin = await api.key("borealis")
    base = "/api/v1/tenants/borealis/policies"
    before = (await api.send("GET", base, key=admin)).json
    bad = await api.send("POST", f"{base}/check", {"layers": {"tenant": "permit ("}}, key=admin)
    assert bad.json["items"][0]["layer"] == "tenant"
    refused = await api.send(
        "POST", f"{base}/activate", {"layers": {"tenant": "permit ("}, "reason": "x"}, key=admin
    )
    assert refused.status == 400
    guardrail = await api.send(
        "POST", f"{base}/activate", {"layers": {"guardrail": ""}, "reason": "x"}, key=admin
    )
    assert guardrail.status == 400
    text = READS.replace("reads", "renamed")
    done = await api.send(
        "POST", f"{base}/activate", {"layers": {"tenant": text}, "reason": "rename"}, key=admin
    )
    assert done.json["policy_version"] == before["policy_version"] + 1
    assert (await api.send("GET", base, key=admin)).json["layers"]["tenant"] == text
    freeze = {"level": "tenant", "verb": "freeze", "tenant_id": "borealis", "reason": "audit"}
    assert (await api.send("POST", "/api/v1/switches", freeze)).status == 200
    frozen = await api.send(
        "POST",
        f"{base}/rollback",
        {"policy_version": before["policy_version"], "reason": "back"},
        key=admin,
    )
    assert frozen.status == 423
    unfreeze = {**freeze, "verb": "unfreeze"}
    held = await api.send("POST", "/api/v1/switches", unfreeze, key=admin)
    assert held.status == 403
    assert (await api.send("POST", "/api/v1/switches", unfreeze)).status == 200
    back = await api.send(
        "POST",
        f"{base}/rollback",
        {"policy_version": before["policy_version"], "reason": "back"},
        key=admin,
    )
    assert back.status == 200
    assert (await api.send("GET", base, key=admin)).json["layers"] == before["layers"]
    history = (await api.send("GET", f"{base}/history", key=admin)).json["items"]
    assert [v["reason"] for v in history[:2]] == ["back", "rename"]
    journal = (await api.send("GET", "/api/v1/tenants/borealis/journal", key=admin)).json["items"]
    names = [entry["action_name"] for entry in journal]
    assert {"policy.activate", "policy.rollback", "switch.freeze", "key.create", "fleet.apply"} <= set(names)


async def test_secrets_never_come_back(api: Api) -> None:
    await api.apply()
    admin = await api.key("borealis")
    path = "/api/v1/tenants/borealis/workspaces/support/secrets/extra"
    order = {"system": "zendesk", "agent_classes": ["support"], "value": "very-secret"}
    put = await api.send("PUT", path, order, key=admin)
    assert put.json == {"version": 1, "changed": True}
    assert (await api.send("PUT", path, order, key=admin)).json == {"version": 1, "changed": False}
    rotated = await api.send("POST", f"{path}/rotate", {"value": "next-secret"}, key=admin)
    assert rotated.json["version"] == 2
    listed = await api.send("GET", "/api/v1/tenants/borealis/secrets?limit=2", key=admin)
    assert len(listed.json["items"]) == 2
    rest = await api.send("GET", f"/api/v1/tenants/borealis/secrets?after={listed.json['next']}", key=admin)
    assert len(rest.json["items"]) == 1
    revoked = await api.send("POST", f"{path}/revoke", {}, key=admin)
    assert revoked.json["revoked"] == 1
    journal = await api.send("GET", "/api/v1/tenants/borealis/journal", key=admin)
    entry = journal.json["items"][0]["action_id"]
    shown = await api.send("GET", f"/api/v1/tenants/borealis/journal/{entry}", key=admin)
    for reply in (listed, rest, journal, shown):
        assert b"very-secret" not in reply.body and b"next-secret" not in reply.body


async def test_the_same_key_and_body_get_the_first_answer(api: Api) -> None:
    await api.apply()
    headers = {"idempotency-key": "k-1"}
    path = "/api/v1/tenants/borealis/keys"
    first, second = await asyncio.gather(
        *(api.send("POST", path, {"role": "viewer"}, headers=headers) for _ in range(2))
    )
    assert first.status == second.status == 201
    assert first.body == second.body
    other = await api.send("POST", path, {"role": "developer"}, headers=headers)
    assert other.status == 422 and other.json["type"].endswith("idempotency_key_reuse")
    elsewhere = await api.send("POST", "/api/v1/tenants/dunes/keys", {"role": "viewer"}, headers=headers)
    assert elsewhere.status == 422
    someone = await api.key("borealis")
    own = await api.send("POST", path, {"role": "viewer"}, headers=headers, key=someone)
    assert own.status == 201 and own.body != first.body
    bad = await api.send("POST", path, {"role": "viewer"}, headers={"idempotency-key": "x" * 201})
    assert bad.status == 400
    failed = await api.send("POST", path, {"role": "operator"}, headers={"idempotency-key": "k-2"})
    assert failed.status == 400
    retried = await api.send("POST", path, {"role": "viewer"}, headers={"idempotency-key": "k-2"})
    assert retried.status == 201


async def test_no_credential_that_proves_nothing_passes(api: Api) -> None:
    tokens = [None, "tnk_x", "", "x" * 5_000, "eyJhbGciOiJub25lIn0.e30.", "\u00e9"]
    bodies = set()
    for token, endpoint in itertools.product(tokens, ENDPOINTS):
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        path = endpoint.path.replace("{", "").replace("}", "")
        reply = await api.send(
            endpoint.method, path, {} if endpoint.body else None, key=None, headers=headers, over="local"
        )
        assert reply.status == 401, (endpoint.path, reply.body)
        bodies.add(reply.body)
    assert len(bodies) == 1


async def test_an_address_that_guesses_waits_and_the_others_do_not(api: Api) -> None:
    statuses = [(await api.send("GET", "/api/v1/whoami", key=f"tnk_{number}")).status for number in range(25)]
    assert statuses[0] == 401 and statuses[-1] == 429
    assert (await api.send("GET", "/api/v1/whoami", over="local")).status == 200
    forwarded = {"tenantry-peer": "203.0.113.9"}
    reply = await api.send("GET", "/api/v1/whoami", key="tnk_x", over="local", headers=forwarded)
    assert reply.status == 401


async def test_a_foreign_host_is_refused_on_the_port(api: Api) -> None:
    for host in ("evil.example", "", "127.0.0.1.evil.example", "localhost@evil", "[::1]:1"):
        reply = await api.send("GET", "/api/v1/whoami", headers={"host": host})
        assert reply.status in {400, 421}, host
    assert (await api.send("GET", "/healthz", headers={"host": "control"}, over="local")).status == 200


BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"\xff\xfe",
    b'{"role": "viewer", "more": 1}',
    b'{"role": "nobody"}',
    b'{"role": "operator"}',
    b'{"role": 1}',
    b'{"role": "viewer", "workspace_id": "no\\u0000"}',
    b'{"role": "viewer", "workspace_id": "\\ud800"}',
    b'{"role": "viewer", "workspace_id": "nowhere"}',
    b'{"role": "viewer", "expires_at": "2001-01-01T00:00:00Z"}',
    b'{"role": "viewer", "expires_at": "soon"}',
    b"[" * 100_000,
    b'{"role": "' + b"x" * 300_000 + b'"}',
]


async def test_a_bad_body_is_a_clear_error(api: Api) -> None:
    await api.apply()
    for raw in BAD_BODIES:
        reply = await api.send("POST", "/api/v1/tenants/borealis/keys", raw=raw)
        assert reply.status == 400, (raw[:100], reply.body)
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json["path"].startswith("$")
    count = (await api.send("GET", "/api/v1/tenants/borealis/keys")).json["items"]
    assert count == []


BAD_QUERIES = [
    "limit=0",
    "limit=501",
    "limit=x",
    "limit=1&limit=2",
    "limit=9999999999999999999999",
    "after=%21",
    "after=" + "A" * 2_000,
    "after=bnVsbA",
    "after=%00",
    "colour=red",
    "colour=" + "x" * 5_000,
]


async def test_a_bad_query_is_a_clear_error(api: Api) -> None:
    for query, path in itertools.product(BAD_QUERIES, ("/api/v1/tenants", "/api/v1/switches")):
        reply = await api.send("GET", f"{path}?{query}")
        assert reply.status == 400, (path, query[:50], reply.body)
        assert reply.json["path"].startswith("query")


async def test_other_methods_and_kinds_are_told(api: Api) -> None:
    reply = await api.send("DELETE", "/api/v1/whoami")
    assert reply.status == 405 and "GET" in reply.headers["allow"]
    reply = await api.send(
        "POST", "/api/v1/switches", raw=b"a=b", headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert reply.status == 400 and reply.json["path"] == "header content-type"


async def test_health_readiness_and_the_document_need_no_key(api: Api) -> None:
    assert (await api.send("GET", "/healthz", key=None)).status == 200
    assert (await api.send("GET", "/readyz", key=None)).json == {"status": "ready"}
    document = (await api.send("GET", "/api/openapi.json", key=None)).json
    assert document["openapi"] == "3.1.0"
    operations = {o["operationId"] for item in document["paths"].values() for o in item.values()}
    assert operations == {endpoint.operation for endpoint in ENDPOINTS}
    text = msgspec.json.encode(document).decode()
    for name in document["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text or name == "Problem", name


async def test_metrics_are_for_operators_and_name_no_tenant(api: Api) -> None:
    await api.apply()
    admin = await api.key("borealis")
    assert (await api.send("GET", "/metrics", key=None)).status == 401
    assert (await api.send("GET", "/metrics", key=admin)).status == 404
    text = (await api.send("GET", "/metrics")).body.decode()
    local = (await api.send("GET", "/metrics", key=None, over="local")).body.decode()
    for shown in (text, local):
        assert 'tenantry_instances{lease="live",role="control"} 1.0' in shown
        assert 'tenantry_job_lag_seconds{job="reaper"} 0.5' in shown
        assert "tenantry_database_up 1.0" in shown
        assert "borealis" not in shown and "dunes" not in shown
