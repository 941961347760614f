-- The base: schema, clock, binding, directory, registry, scopes, journal, log, switches, instances.
-- Runs as tenantry_owner, which owns everything here and is never used at run time. The roles exist (roles.sql).

create schema tenantry authorization tenantry_owner;
grant usage on schema tenantry to tenantry_gate, tenantry_app, tenantry_platform, tenantry_control;

-- The clock --------------------------------------------------------------------------------------------------

-- All SQL takes time from here. Test databases replace the body by one that adds an offset (storage/clock.sql).
create function tenantry.now() returns timestamptz
language sql stable parallel safe
return clock_timestamp();

-- Binding ----------------------------------------------------------------------------------------------------

-- Raised by every policy when nothing is bound. Custom settings read NULL before their first use and '' after a
-- transaction that had set one: both are nothing.
create function tenantry.raise_unbound() returns text
language plpgsql stable parallel safe
as $$
begin
    raise exception 'no tenant is bound' using errcode = 'insufficient_privilege';
end
$$;

-- The tenant that this transaction is bound to: `app.tenants` holds one, as an array literal. Policies call these three
-- in a sub-select, so they are evaluated once a statement; they are plain SQL so that the planner inlines them.
create function tenantry.bound_tenant() returns text
language sql stable parallel safe
return case
    when cardinality(nullif(current_setting('app.tenants', true), '')::text[]) = 1
        then coalesce(nullif((current_setting('app.tenants')::text[])[1], ''), tenantry.raise_unbound())
    else tenantry.raise_unbound()
end;

-- The tenants of the gate's batch, as the keys of an object in `app.batch`: a policy then asks `? tenant_id`, a binary
-- search that the planner cannot turn into an index condition. (`= any(array)` became one, and cost 20 us a probe.)
create function tenantry.bound_batch() returns jsonb
language sql stable parallel safe
return coalesce(nullif(nullif(current_setting('app.batch', true), '')::jsonb, '{}'), tenantry.raise_unbound()::jsonb);

-- Why work across tenants is done; the same rule for the platform role.
create function tenantry.platform_reason() returns text
language sql stable parallel safe
return coalesce(nullif(current_setting('app.platform_reason', true), ''), tenantry.raise_unbound());

-- Domains ----------------------------------------------------------------------------------------------------

create domain tenantry.tenant_id as text collate "C" check (value ~ '^[a-z][a-z0-9_]{1,62}$');
create domain tenantry.name as text collate "C" check (octet_length(value) between 1 and 200);

-- Directory: which shard holds a tenant, which tenant a key belongs to. No content. -----------------------------

create table tenantry.directory_tenants (
    tenant_id tenantry.tenant_id primary key,
    shard_id tenantry.name not null default 'main',
    version bigint not null default 1
);
create table tenantry.directory_keys (
    key_sha256 bytea primary key check (octet_length(key_sha256) = 32),
    tenant_id tenantry.tenant_id references tenantry.directory_tenants -- null: an operator's key
);

-- Platform-wide configuration (no tenant's data) ----------------------------------------------------------------

-- One row: its version stands beside every tenant's policy_version, its mode is the fleet's switch.
create table tenantry.fleet_scope (
    only_row boolean primary key default true check (only_row),
    policy_version bigint not null default 1,
    mode text not null default 'normal'
        check (mode in ('normal', 'read_only', 'drafts_only', 'approvals_only', 'suspended')),
    switch_id text collate "C",
    switched_by text,
    switched_at timestamptz,
    switch_reason text
);
insert into tenantry.fleet_scope default values;

-- kind: guardrail | quota_class | provider | model. `spec` is the fleet file's struct as JSON.
create table tenantry.platform_specs (
    kind text collate "C" not null,
    name tenantry.name not null,
    spec jsonb not null,
    updated_at timestamptz not null default tenantry.now(),
    primary key (kind, name)
);

create table tenantry.operator_keys (
    key_id text collate "C" primary key,
    key_sha256 bytea not null unique check (octet_length(key_sha256) = 32),
    principal_id text collate "C" not null,
    prefix text not null,
    created_at timestamptz not null default tenantry.now(),
    expires_at timestamptz,
    revoked_at timestamptz
);

-- Tenants and their registry --------------------------------------------------------------------------------

create table tenantry.tenants (
    tenant_id tenantry.tenant_id primary key references tenantry.directory_tenants,
    display_name text not null,
    quota_class tenantry.name not null,
    spec jsonb not null default '{}',
    created_at timestamptz not null default tenantry.now()
);

-- The tenant's data key, wrapped by the root key; destroying the row is off-boarding.
create table tenantry.tenant_keys (
    tenant_id tenantry.tenant_id not null references tenantry.tenants,
    key_version integer not null,
    wrapped_key bytea not null,
    created_at timestamptz not null default tenantry.now(),
    primary key (tenant_id, key_version)
);

-- kind: workspace | agent | profile | policy | integration. `spec` is the fleet file's struct as JSON.
create table tenantry.tenant_specs (
    tenant_id tenantry.tenant_id not null references tenantry.tenants,
    kind text collate "C" not null,
    name tenantry.name not null,
    spec jsonb not null,
    updated_at timestamptz not null default tenantry.now(),
    primary key (tenant_id, kind, name)
);

-- Immutable history of a tenant's policies: what was in force under which version, by whom and why.
create table tenantry.policy_versions (
    tenant_id tenantry.tenant_id not null references tenantry.tenants,
    policy_version bigint not null,
    layers jsonb not null,
    author text not null,
    reason text not null,
    activated_at timestamptz not null default tenantry.now(),
    primary key (tenant_id, policy_version)
);

create table tenantry.api_keys (
    tenant_id tenantry.tenant_id not null references tenantry.tenants,
    key_id text collate "C" not null,
    key_sha256 bytea not null check (octet_length(key_sha256) = 32),
    prefix text not null,
    principal_id text collate "C" not null,
    role text not null,
    workspace_id text collate "C",
    created_at timestamptz not null default tenantry.now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    primary key (tenant_id, key_id)
);
create unique index api_keys_by_hash on tenantry.api_keys (tenant_id, key_sha256);

-- A secret's versions; `sealed` is under the tenant's data key with tenant|secrets|name|version as associated data.
create table tenantry.secrets (
    tenant_id tenantry.tenant_id not null references tenantry.tenants,
    workspace_id text collate "C" not null,
    name tenantry.name not null,
    version integer not null,
    system text collate "C" not null,
    agent_classes text[] not null,
    capability text not null check (capability in ('read', 'mutate')),
    sealed bytea,
    created_at timestamptz not null default tenantry.now(),
    revoked_at timestamptz,
    primary key (tenant_id, workspace_id, name, version)
);

-- Scopes: the wide rows that `begin` and `settle` lock ------------------------------------------------------

-- level: 0 tenant, 1 workspace, 2 agent, 3 run. A null limit does not bound. A meter's `_window` is the Unix second
-- at which its window began (0 at level run, where day meters count the run's life). Only gate/*.sql writes this.
-- No check constraints and no domains on this table, the journal and the log: PostgreSQL parses each of them again for
-- every statement (7% of a begin). What they would say is asserted by the property tests and by `tenantry doctor`.
create table tenantry.scopes (
    tenant_id text collate "C" not null references tenantry.tenants,
    level smallint not null,
    subject_id text collate "C" not null,

    mode text not null default 'normal',
    killed boolean not null default false,
    frozen boolean not null default false,
    switch_id text collate "C",
    switched_by text,
    switched_at timestamptz,
    switch_reason text,
    mode_expires_at timestamptz,
    epoch bigint not null default 0,

    -- level tenant
    policy_version bigint not null default 1,
    log_size bigint not null default 0,
    -- level run
    attempt integer,
    lease_expires_at timestamptz,
    labels text[] not null default '{}',
    labels_epoch bigint not null default 0,

    requests_interval_us bigint,
    requests_burst bigint,
    requests_tat_us bigint not null default 0,

    concurrent_runs_limit bigint,
    concurrent_runs_reserved bigint not null default 0,

    model_inflight_limit bigint,
    model_inflight_reserved bigint not null default 0,

    model_tokens_minute_limit bigint,
    model_tokens_minute_used bigint not null default 0,
    model_tokens_minute_reserved bigint not null default 0,
    model_tokens_minute_window bigint not null default 0,

    model_tokens_day_limit bigint,
    model_tokens_day_used bigint not null default 0,
    model_tokens_day_reserved bigint not null default 0,

    cost_microusd_day_limit bigint,
    cost_microusd_day_used bigint not null default 0,
    cost_microusd_day_reserved bigint not null default 0,

    tool_calls_day_limit bigint,
    tool_calls_day_used bigint not null default 0,
    tool_calls_day_reserved bigint not null default 0,

    high_risk_day_limit bigint,
    high_risk_day_used bigint not null default 0,
    high_risk_day_reserved bigint not null default 0,

    -- One window for the four day meters.
    day_window bigint not null default 0,

    journal_bytes_limit bigint,
    journal_bytes_used bigint not null default 0,
    journal_bytes_reserved bigint not null default 0,

    -- Billed beyond the bound; begin is refused while they are above zero.
    overrun_tokens bigint not null default 0,
    overrun_microusd bigint not null default 0,

    refusals bigint not null default 0,

    primary key (tenant_id, level, subject_id)
) with (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- Runs -----------------------------------------------------------------------------------------------------

create table tenantry.runs (
    tenant_id tenantry.tenant_id not null references tenantry.tenants,
    run_id text collate "C" not null,
    workspace_id text collate "C" not null,
    agent_id text collate "C" not null,
    principal_id text collate "C" not null,
    action_id text collate "C" not null,
    attempt integer not null default 1,
    state text not null default 'running'
        check (state in ('running', 'succeeded', 'failed', 'cancelled', 'expired')),
    mode text not null check (mode in ('attached', 'external')),
    envelope bytea not null,
    result bytea,
    started_at timestamptz not null,
    deadline_at timestamptz not null,
    ended_at timestamptz,
    primary key (tenant_id, run_id)
);
-- The expiry job asks for running runs past their deadline.
create index runs_running_by_deadline on tenantry.runs (deadline_at) where state = 'running';

-- Journal --------------------------------------------------------------------------------------------------

-- One row an action, refused ones too. Amounts are the reservation until settled. `content` is salt (16 bytes) +
-- sealed {envelope, input, policy request}; `output` salt + sealed outcome. No index covers a column that settle
-- changes, so that settle is a HOT update; `state` is therefore found through BRIN over begun_at.
create table tenantry.journal (
    tenant_id text collate "C" not null,
    action_id text collate "C" not null,
    idempotency_key text collate "C",
    workspace_id text collate "C" not null,
    agent_id text collate "C" not null,
    run_id text collate "C" not null,
    principal_id text collate "C" not null,
    kind text collate "C" not null,
    action_name text collate "C" not null,
    risk smallint not null,
    target_system text collate "C" not null,
    input_sha256 bytea not null,
    policy_version bigint not null,
    reason jsonb not null, -- the policies that decided
    verdict text collate "C" not null,
    detail jsonb,
    log_position bigint not null, -- of its first entry
    state text collate "C" not null, -- begun | settled | voided | held | refused | admin | shed
    status text collate "C",
    instance_id text collate "C" not null,
    begun_at timestamptz not null,
    expires_at timestamptz not null,
    settled_at timestamptz,
    minute_window bigint not null default 0,
    day_window bigint not null default 0,
    concurrent_runs bigint not null default 0,
    model_inflight bigint not null default 0,
    model_tokens bigint not null default 0,
    cost_microusd bigint not null default 0,
    tool_calls bigint not null default 0,
    high_risk bigint not null default 0,
    journal_bytes bigint not null default 0,
    used_tokens bigint,
    used_microusd bigint,
    content bytea,
    content_sha256 bytea not null,
    output bytea,
    output_sha256 bytea,
    primary key (tenant_id, action_id)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.1);
-- Sealed bytes do not compress: do not try.
alter table tenantry.journal alter column content set storage external;
alter table tenantry.journal alter column output set storage external;
create unique index journal_idempotency on tenantry.journal (tenant_id, idempotency_key)
    where idempotency_key is not null;
create index journal_begun_at on tenantry.journal using brin (begun_at) with (pages_per_range = 16, autosummarize = on);

-- The tenant's log: one leaf at each gapless position (RFC 6962 leaf hashes), append-only.
create table tenantry.log_leaves (
    tenant_id text collate "C" not null,
    position bigint not null,
    action_id text collate "C" not null,
    phase text collate "C" not null,
    leaf bytea not null,
    primary key (tenant_id, position)
);

-- Approvals: bound to one action by digest, used once. -----------------------------------------------------

create table tenantry.approvals (
    tenant_id tenantry.tenant_id not null references tenantry.tenants,
    approval_id text collate "C" not null,
    digest bytea not null check (octet_length(digest) = 32),
    run_id text collate "C" not null,
    action_id text collate "C" not null,
    approvers text[] not null,
    state text not null default 'pending' check (state in ('pending', 'approved', 'denied', 'used', 'expired')),
    requested_at timestamptz not null,
    expires_at timestamptz not null,
    answered_by text,
    answered_at timestamptz,
    primary key (tenant_id, approval_id)
);
create unique index approvals_open on tenantry.approvals (tenant_id, run_id, digest)
    where state in ('pending', 'approved');

-- Switches and instances -----------------------------------------------------------------------------------

-- The order in which switches commit; its row lock is taken last in a switch's transaction.
create table tenantry.switch_clock (
    only_row boolean primary key default true check (only_row),
    switch_seq bigint not null default 0
);
insert into tenantry.switch_clock default values;

create table tenantry.switches (
    switch_seq bigint primary key,
    switch_id text collate "C" not null unique,
    tenant_id tenantry.tenant_id, -- null: the fleet
    level smallint not null check (level between -1 and 3),
    subject_id text collate "C" not null,
    verb text not null check (verb in ('kill', 'revive', 'mode', 'freeze', 'unfreeze')),
    mode text,
    mode_expires_at timestamptz,
    epoch bigint not null,
    requested_by text not null,
    reason text not null,
    requested_at timestamptz not null,
    confirmed_at timestamptz,
    acknowledgements jsonb
);
create index switches_by_tenant on tenantry.switches (tenant_id, switch_seq);

-- A process that can act. Its lease is 2 s, renewed every 500 ms; `oldest_open_at` bounds the reaper's scan.
create table tenantry.instances (
    instance_id text collate "C" primary key,
    role text not null,
    started_at timestamptz not null,
    lease_expires_at timestamptz not null,
    oldest_open_at timestamptz not null,
    acked_switch_seq bigint not null,
    address text
) with (fillfactor = 50);

create table tenantry.incidents (
    tenant_id tenantry.tenant_id not null references tenantry.tenants,
    incident_id text collate "C" not null,
    kind text not null,
    detail jsonb not null,
    opened_at timestamptz not null,
    closed_at timestamptz,
    primary key (tenant_id, incident_id)
);

-- Migrations -----------------------------------------------------------------------------------------------

-- (tenantry_meta.migrations is made by the migrator itself, before this file.)
