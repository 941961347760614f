-- What the gate's batch function takes: one composite an action. (Parallel arrays cost a tuplestore a column and
-- statement: 0.6 ms a call.) A new field or meaning is a `_v2`, and both live for one release.

create type tenantry.begin_item_v1 as (
    tenant_id text,
    action_id text,
    key text, -- the caller's idempotency key, null for none
    workspace text,
    agent text,
    run text,
    scope_run text, -- null while the run is being opened: its scope does not exist yet
    principal text,
    kind text,
    name text,
    risk smallint,
    system text,
    input_sha256 bytea,
    policy_version bigint,
    fleet_version bigint,
    attempt integer,
    allow boolean,
    reason text, -- JSON array of policy ids
    approvers text, -- comma-separated roles, '' when none is needed
    approval_digest bytea,
    labels text, -- comma-separated, sorted
    labels_epoch bigint,
    concurrent_runs bigint,
    model_inflight bigint,
    model_tokens bigint,
    cost_microusd bigint,
    tool_calls bigint,
    high_risk bigint,
    journal_bytes bigint,
    timeout_ms bigint,
    content bytea, -- salt (16 bytes) + sealed content
    content_sha256 bytea,
    run_spec text -- JSON of a run to open, null otherwise
);

create type tenantry.settle_item_v1 as (
    tenant_id text,
    action_id text,
    workspace text,
    agent text,
    scope_run text,
    status text, -- ok | failed | cut | unknown | void
    tokens bigint,
    microusd bigint,
    journal_bytes bigint,
    labels text,
    output bytea, -- salt (16 bytes) + sealed outcome
    output_sha256 bytea,
    overran boolean, -- the caller saw a bill above its bound: look, and open an incident
    run_state text -- the final state of a run that this settlement closes, null otherwise
);

-- A scope that a batch touches, as the arrays of keys name it.
create type tenantry.scope_key_v1 as (
    tenant_id text,
    level smallint,
    subject_id text
);
