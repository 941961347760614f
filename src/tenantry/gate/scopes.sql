-- How control changes scope rows: limits, versions, switches, modes; and how it journals what people do. One lock
-- order everywhere: fleet < scope rows by (tenant, level, subject) < switch clock < journal.

-- name: scopes :script
-- Make a scope or set its limits; use and reservations stay. A limit lowered below use: nothing begins, nothing is cut.
create or replace function tenantry.put_scope_v1(p_tenant text, p_level smallint, p_subject text, p_limits jsonb)
returns void
language sql volatile
as $$
    insert into tenantry.scopes as s (
        tenant_id, level, subject_id, requests_interval_us, requests_burst, concurrent_runs_limit, model_inflight_limit,
        model_tokens_minute_limit, model_tokens_day_limit, cost_microusd_day_limit, tool_calls_day_limit,
        high_risk_day_limit, journal_bytes_limit
    )
    select
        p_tenant, p_level, p_subject,
        case when l.requests_per_minute is not null
            then 60000000 / greatest(least(l.requests_per_minute, 60000000), 1) end,
        case when l.requests_per_minute is not null
            then least(coalesce(l.requests_burst, l.requests_per_minute), least(l.requests_per_minute, 60000000) * 1000000)
            end,
        l.concurrent_runs, l.model_inflight, l.model_tokens_minute, l.model_tokens_day, l.cost_microusd_day,
        l.tool_calls_day, l.high_risk_day, l.journal_bytes
    from jsonb_to_record(p_limits) l(
        requests_per_minute bigint, requests_burst bigint, concurrent_runs bigint, model_inflight bigint,
        model_tokens_minute bigint, model_tokens_day bigint, cost_microusd_day bigint, tool_calls_day bigint,
        high_risk_day bigint, journal_bytes bigint
    )
    on conflict (tenant_id, level, subject_id) do update set
        requests_interval_us = excluded.requests_interval_us,
        requests_burst = excluded.requests_burst,
        -- What was borrowed of the old rate is owed to the new one, and never more than it lends.
        requests_tat_us = least(
            s.requests_tat_us,
            (extract(epoch from tenantry.now()) * 1000000)::bigint
                + excluded.requests_interval_us * excluded.requests_burst),
        concurrent_runs_limit = excluded.concurrent_runs_limit,
        model_inflight_limit = excluded.model_inflight_limit,
        model_tokens_minute_limit = excluded.model_tokens_minute_limit,
        model_tokens_day_limit = excluded.model_tokens_day_limit,
        cost_microusd_day_limit = excluded.cost_microusd_day_limit,
        tool_calls_day_limit = excluded.tool_calls_day_limit,
        high_risk_day_limit = excluded.high_risk_day_limit,
        journal_bytes_limit = excluded.journal_bytes_limit
$$;

-- Whatever was decided on the tenant's old configuration no longer begins. Refused while the tenant is frozen.
create or replace function tenantry.bump_policy_version_v1(p_tenant text) returns bigint
language plpgsql volatile
as $$
declare
    v_version bigint;
begin
    update tenantry.scopes s
    set policy_version = s.policy_version + 1
    where s.tenant_id = p_tenant and s.level = 0 and s.subject_id = p_tenant and not s.frozen
    returning s.policy_version into v_version;
    if v_version is null then
        raise exception 'the policy of tenant % is frozen, or the tenant does not exist', p_tenant
            using errcode = 'object_not_in_prerequisite_state';
    end if;
    return v_version;
end
$$;

-- The same for what stands above tenants: guardrails, providers, models, quota classes.
create or replace function tenantry.bump_fleet_version_v1() returns bigint
language sql volatile
as $$
    update tenantry.fleet_scope set policy_version = policy_version + 1 returning policy_version
$$;

-- One entry that is no action, in the tenant's journal and log. state: admin (what a person did) | shed (requests turned
-- away before they were decided on, counted).
create or replace function tenantry.journal_note_v1(
    p_state text, p_verdict text, p_tenant text, p_action_id text, p_principal text, p_name text, p_target text,
    p_detail jsonb, p_instance text, p_content bytea, p_content_sha256 bytea
) returns bigint
language plpgsql volatile
as $$
declare
    v_position bigint;
    v_version bigint;
begin
    update tenantry.scopes s
    set log_size = s.log_size + 1, journal_bytes_used = s.journal_bytes_used + least(
        octet_length(p_content),
        greatest(coalesce(s.journal_bytes_limit - s.journal_bytes_used - s.journal_bytes_reserved, 2147483647), 0))
    where s.tenant_id = p_tenant and s.level = 0 and s.subject_id = p_tenant
    returning s.log_size - 1, s.policy_version into v_position, v_version;
    if v_position is null then
        raise exception 'tenant % does not exist', p_tenant using errcode = 'no_data_found';
    end if;
    insert into tenantry.journal (
        tenant_id, action_id, workspace_id, agent_id, run_id, principal_id, kind, action_name, risk, target_system,
        input_sha256, policy_version, reason, verdict, detail, log_position, state, instance_id, begun_at, expires_at, settled_at,
        content, content_sha256
    ) values (
        p_tenant, p_action_id, '', '', '', p_principal, p_state, p_name, 2, p_target, p_content_sha256, v_version, '[]',
        p_verdict, p_detail, v_position, p_state, p_instance, tenantry.now(), tenantry.now(), tenantry.now(), p_content,
        p_content_sha256
    );
    insert into tenantry.log_leaves (tenant_id, position, action_id, phase, leaf)
    values (p_tenant, v_position, p_action_id, 'begin',
        tenantry.leaf_v1(p_tenant, v_position, p_action_id, 'begin', p_verdict, p_content_sha256));
    return v_position;
end
$$;

-- What a person did, in the transaction of its effect.
create or replace function tenantry.journal_admin_v1(
    p_tenant text, p_action_id text, p_principal text, p_name text, p_target text, p_detail jsonb, p_instance text,
    p_content bytea, p_content_sha256 bytea
) returns bigint
language sql volatile
as $$
    select tenantry.journal_note_v1(
        'admin', 'allowed', p_tenant, p_action_id, p_principal, p_name, p_target, p_detail, p_instance, p_content,
        p_content_sha256)
$$;

-- Step one of a switch: one update of the scope row raises its epoch; from the commit on no begin of it is allowed
-- anywhere. level -1 is the fleet (p_tenant null). The switch clock's row lock is taken last, so the order of
-- switch_seq is the order of commits and a reader that has seen n has seen everything before n.
create or replace function tenantry.switch_v1(
    p_tenant text, p_level smallint, p_subject text, p_verb text, p_mode text, p_expires_at timestamptz, p_by text,
    p_reason text, p_switch_id text
) returns table (switch_seq bigint, epoch bigint, requested_at timestamptz)
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := tenantry.now();
    v_epoch bigint;
    v_seq bigint;
begin
    if p_level = -1 then
        update tenantry.fleet_scope f
        set mode = case p_verb when 'kill' then 'suspended' when 'revive' then 'normal' else p_mode end,
            switch_id = p_switch_id, switched_by = p_by, switched_at = v_now, switch_reason = p_reason;
        v_epoch := 0;
    else
        update tenantry.scopes s
        set epoch = s.epoch + 1,
            killed = case p_verb when 'kill' then true when 'revive' then false else s.killed end,
            frozen = case p_verb when 'freeze' then true when 'unfreeze' then false else s.frozen end,
            mode = case when p_verb = 'mode' then p_mode else s.mode end,
            mode_expires_at = case when p_verb = 'mode' then p_expires_at else s.mode_expires_at end,
            switch_id = p_switch_id, switched_by = p_by, switched_at = v_now, switch_reason = p_reason
        where s.tenant_id = p_tenant and s.level = p_level and s.subject_id = p_subject
        returning s.epoch into v_epoch;
        if v_epoch is null then
            raise exception 'no such scope' using errcode = 'no_data_found';
        end if;
    end if;
    update tenantry.switch_clock c set switch_seq = c.switch_seq + 1 returning c.switch_seq into v_seq;
    insert into tenantry.switches (
        switch_seq, switch_id, tenant_id, level, subject_id, verb, mode, mode_expires_at, epoch, requested_by, reason,
        requested_at
    ) values (
        v_seq, p_switch_id, p_tenant, p_level, p_subject, p_verb, p_mode, p_expires_at, v_epoch, p_by, p_reason, v_now
    );
    perform pg_notify('tenantry_switch', v_seq::text);
    return query select v_seq, v_epoch, v_now;
end
$$;

-- Renew an instance's lease and read, in the same statement, every switch that it has not acknowledged. Returns one
-- row at least: the clock's state with null columns where there is nothing new.
create or replace function tenantry.renew_instance_v1(
    p_instance text, p_role text, p_address text, p_lease interval, p_oldest_open_at timestamptz, p_acked_seq bigint
) returns table (
    seen_seq bigint, switch_seq bigint, tenant_id text, level smallint, subject_id text, verb text, mode text
)
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := tenantry.now();
    v_seen bigint;
begin
    insert into tenantry.instances as i (
        instance_id, role, started_at, lease_expires_at, oldest_open_at, acked_switch_seq, address
    ) values (
        p_instance, p_role, v_now, v_now + p_lease, coalesce(p_oldest_open_at, v_now), p_acked_seq, p_address
    )
    on conflict (instance_id) do update set
        lease_expires_at = excluded.lease_expires_at,
        oldest_open_at = excluded.oldest_open_at,
        acked_switch_seq = greatest(i.acked_switch_seq, excluded.acked_switch_seq);
    -- INVARIANT 4: shared with the lock that a switch takes last. Either this renewal is committed before the switch, and
    -- whoever waits for acknowledgements sees the lease and waits for it; or it reads the switch. Without the lock a lapsed
    -- instance could wake up between the two.
    select c.switch_seq into v_seen from tenantry.switch_clock c for share;
    return query
    select v_seen, s.switch_seq, s.tenant_id::text, s.level, s.subject_id, s.verb, s.mode
    from (select 1) one
    left join tenantry.switches s on s.switch_seq > p_acked_seq and s.switch_seq <= v_seen
    order by s.switch_seq;
end
$$;

-- What a person does to a scope of a tenant, as one statement and so one transaction: nobody's client can stop between
-- its locks. Binds itself to the tenant, takes the tenant's row first (lock order), raises the epoch, journals.
-- p_expected_epoch: the epoch on which the asker decided that the switch may be taken back; another one: 40001.
create or replace function tenantry.switch_scope_v1(
    p_tenant text, p_level smallint, p_subject text, p_verb text, p_mode text, p_expires_at timestamptz, p_by text,
    p_reason text, p_switch_id text, p_expected_epoch bigint, p_action_id text, p_name text, p_target text,
    p_detail jsonb, p_instance text, p_content bytea, p_content_sha256 bytea
) returns table (switch_seq bigint, epoch bigint, requested_at timestamptz, log_position bigint)
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    v_switch record;
    v_position bigint;
begin
    perform set_config('app.tenants', array[p_tenant]::text, true);
    -- One probe by whole key each, in lock order: a tenant may have many scopes.
    perform
    from (values (0::smallint, p_tenant), (nullif(p_level, 0::smallint), p_subject)) w(level, subject_id)
    cross join lateral (
        select from tenantry.scopes s
        where s.tenant_id = p_tenant and s.level = w.level and s.subject_id = w.subject_id
        for no key update
    ) held;
    if p_expected_epoch is not null and exists (
        select from tenantry.scopes s
        where s.tenant_id = p_tenant and s.level = p_level and s.subject_id = p_subject and s.epoch <> p_expected_epoch
    ) then
        raise exception 'the scope was switched meanwhile' using errcode = 'serialization_failure';
    end if;
    select * into v_switch from tenantry.switch_v1(
        p_tenant, p_level, p_subject, p_verb, p_mode, p_expires_at, p_by, p_reason, p_switch_id);
    v_position := tenantry.journal_admin_v1(
        p_tenant, p_action_id, p_by, p_name, p_target, p_detail, p_instance, p_content, p_content_sha256);
    return query select v_switch.switch_seq, v_switch.epoch, v_switch.requested_at, v_position;
end
$$;

-- A person has looked at what a provider billed beyond the bound: model calls may begin again. As tenantry_control.
create or replace function tenantry.clear_overrun_v1(p_tenant text) returns table (scopes bigint, incidents bigint)
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    v_scopes bigint;
    v_incidents bigint;
begin
    perform from tenantry.scopes s
    where s.tenant_id = p_tenant and (s.level = 0 or s.overrun_tokens + s.overrun_microusd > 0)
    order by s.tenant_id, s.level, s.subject_id
    for no key update of s;
    update tenantry.scopes s set overrun_tokens = 0, overrun_microusd = 0
    where s.tenant_id = p_tenant and s.overrun_tokens + s.overrun_microusd > 0;
    get diagnostics v_scopes = row_count;
    update tenantry.incidents i set closed_at = tenantry.now()
    where i.tenant_id = p_tenant and i.kind = 'provider_overrun' and i.closed_at is null;
    get diagnostics v_incidents = row_count;
    return query select v_scopes, v_incidents;
end
$$;
