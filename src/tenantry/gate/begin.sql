-- begin: intent, reservation and verdict of a batch of actions. Called by batch.sql inside its transaction, after
-- every scope row named here was locked in the global order; never called alone.

-- name: begin :script
-- How far a mode lets an action go: the highest risk admitted, -1 for none. approvals_only is 0 plus a person's word.
create or replace function tenantry.mode_admits_v1(mode text) returns smallint
language sql immutable parallel safe
return (case mode
    when 'normal' then 3
    when 'drafts_only' then 1
    when 'read_only' then 0
    when 'approvals_only' then 0
    else -1
end)::smallint;

-- What is left of a meter; a null limit does not bound.
create or replace function tenantry.left_of_v1(limit_ bigint, used bigint, reserved bigint, in_window boolean)
returns bigint
language sql immutable parallel safe
return coalesce(limit_ - case when in_window then used + reserved else 0 end, 4611686018427387904);

-- The leaf of one entry (RFC 6962 section 2.1: SHA-256 over 0x00 and the entry). The entry is text that a verifier can
-- rebuild, then the SHA-256 of the salted, sealed content; so the proof stays valid after the content is erased.
create or replace function tenantry.leaf_v1(
    tenant_id text, log_position bigint, action_id text, phase text, word text, content_sha256 bytea
) returns bytea
language sql stable parallel safe
return sha256(
    '\x00'::bytea
    || convert_to(
        'tenantry-log-v1' || E'\n' || tenant_id || E'\n' || log_position || E'\n' || action_id || E'\n'
        || phase || E'\n' || word || E'\n', 'UTF8')
    || content_sha256
);

-- Words and figures for a refusal at one scope. level -1 is the fleet.
create or replace function tenantry.refusal_detail_v1(
    code text, p_tenant text, p_level smallint, p_subject text, meter text, now_us bigint, requested bigint
) returns jsonb
language sql stable
as $$
    select case code
        when 'suspended' then jsonb_build_object(
            'level', s.level, 'subject', s.subject_id, 'mode', case when s.killed then 'killed' else s.mode end,
            'switch_id', s.switch_id, 'by', s.switched_by, 'since', s.switched_at, 'reason', s.switch_reason)
        else jsonb_build_object(
            'level', s.level, 'subject', s.subject_id, 'meter', meter, 'requested', requested,
            'limit', m.limit_, 'used', m.used, 'reserved', m.reserved, 'resets_at_s', m.resets_at_s,
            'retry_after_ms', case meter
                when 'requests' then greatest(1, ceil((
                    greatest(s.requests_tat_us, now_us) + s.requests_interval_us
                    - s.requests_interval_us * s.requests_burst - now_us) / 1000.0))
                when 'concurrent_runs' then 1000
                when 'model_inflight' then 250 end)
        end
    from (
        select s.tenant_id, s.level, s.subject_id, s.mode, s.killed, s.switch_id, s.switched_by, s.switched_at,
            s.switch_reason, s.requests_tat_us, s.requests_interval_us, s.requests_burst, s.day_window,
            s.model_tokens_minute_window, s.concurrent_runs_limit, s.concurrent_runs_reserved, s.model_inflight_limit,
            s.model_inflight_reserved, s.model_tokens_minute_limit, s.model_tokens_minute_used,
            s.model_tokens_minute_reserved, s.model_tokens_day_limit, s.model_tokens_day_used,
            s.model_tokens_day_reserved, s.cost_microusd_day_limit, s.cost_microusd_day_used,
            s.cost_microusd_day_reserved, s.tool_calls_day_limit, s.tool_calls_day_used, s.tool_calls_day_reserved,
            s.high_risk_day_limit, s.high_risk_day_used, s.high_risk_day_reserved, s.journal_bytes_limit,
            s.journal_bytes_used, s.journal_bytes_reserved, s.overrun_tokens, s.overrun_microusd
        from tenantry.scopes s
        where s.tenant_id = p_tenant and s.level = p_level and s.subject_id = p_subject
        union all
        select p_tenant, -1, 'fleet', f.mode, false, f.switch_id, f.switched_by, f.switched_at, f.switch_reason,
            null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
            null, null, null, null, null, null, null, null, null, null, null
        from tenantry.fleet_scope f
        where p_level = -1
    ) s
    left join lateral (values
        ('requests', s.requests_burst, null, null, null),
        ('concurrent_runs', s.concurrent_runs_limit, 0, s.concurrent_runs_reserved, null),
        ('model_inflight', s.model_inflight_limit, 0, s.model_inflight_reserved, null),
        ('model_tokens_minute', s.model_tokens_minute_limit, s.model_tokens_minute_used,
            s.model_tokens_minute_reserved, s.model_tokens_minute_window + 60),
        ('model_tokens_day', s.model_tokens_day_limit, s.model_tokens_day_used, s.model_tokens_day_reserved,
            nullif(s.day_window, 0) + 86400),
        ('cost_microusd_day', s.cost_microusd_day_limit, s.cost_microusd_day_used, s.cost_microusd_day_reserved,
            nullif(s.day_window, 0) + 86400),
        ('tool_calls_day', s.tool_calls_day_limit, s.tool_calls_day_used, s.tool_calls_day_reserved,
            nullif(s.day_window, 0) + 86400),
        ('high_risk_day', s.high_risk_day_limit, s.high_risk_day_used, s.high_risk_day_reserved,
            nullif(s.day_window, 0) + 86400),
        ('journal_bytes', s.journal_bytes_limit, s.journal_bytes_used, s.journal_bytes_reserved, null),
        ('overrun', 0, s.overrun_tokens, 0, null)
    ) m(name, limit_, used, reserved, resets_at_s) on m.name = meter
$$;

-- One open approval a (run, digest): asked for again, it is the same one.
create or replace function tenantry.ask_approval_v1(
    p_tenant text, p_run text, p_action_id text, p_digest bytea, p_approvers text, p_now timestamptz
) returns jsonb
language sql volatile
as $$
    with lapsed as (
        update tenantry.approvals a
        set state = 'expired'
        where a.tenant_id = p_tenant and a.run_id = p_run and a.digest = p_digest
            and a.state in ('pending', 'approved') and a.expires_at <= p_now
    ),
    asked as (
        insert into tenantry.approvals (
            tenant_id, approval_id, digest, run_id, action_id, approvers, requested_at, expires_at
        )
        select p_tenant, replace(p_action_id, 'act_', 'apr_'), p_digest, p_run, p_action_id,
            case when p_approvers = '' then array['approver', 'tenant_admin'] else string_to_array(p_approvers, ',') end,
            p_now, p_now + interval '24 hours'
        where not exists (
            select from tenantry.approvals a
            where a.tenant_id = p_tenant and a.run_id = p_run and a.digest = p_digest
                and a.state in ('pending', 'approved') and a.expires_at > p_now
        )
        returning approval_id, approvers, expires_at
    )
    select jsonb_build_object('approval_id', approval_id, 'approvers', approvers, 'expires_at', expires_at)
    from (
        select approval_id, approvers, expires_at from asked
        union all
        select a.approval_id, a.approvers, a.expires_at
        from tenantry.approvals a
        where a.tenant_id = p_tenant and a.run_id = p_run and a.digest = p_digest
            and a.state in ('pending', 'approved') and a.expires_at > p_now
    ) open_one
    limit 1
$$;

-- spec: {mode, deadline_at, envelope (base64), input (base64), limits {...}}
create or replace function tenantry.open_run_v1(
    p_tenant text, p_run text, p_workspace text, p_agent text, p_principal text, p_action_id text, p_spec jsonb,
    p_now timestamptz
) returns void
language sql volatile
as $$
    insert into tenantry.runs (
        tenant_id, run_id, workspace_id, agent_id, principal_id, action_id, mode, envelope, input, started_at,
        deadline_at
    ) values (
        p_tenant, p_run, p_workspace, p_agent, p_principal, p_action_id, p_spec ->> 'mode',
        decode(p_spec ->> 'envelope', 'base64'), decode(p_spec ->> 'input', 'base64'), p_now,
        (p_spec ->> 'deadline_at')::timestamptz
    );
    insert into tenantry.scopes (
        tenant_id, level, subject_id, attempt, lease_expires_at, requests_interval_us, requests_burst,
        model_inflight_limit, model_tokens_minute_limit, model_tokens_day_limit, cost_microusd_day_limit,
        tool_calls_day_limit, high_risk_day_limit, journal_bytes_limit
    )
    select
        p_tenant, 3, p_run, 1, (p_spec ->> 'deadline_at')::timestamptz,
        60000000 / greatest(l.requests_per_minute, 1),
        least(coalesce(l.requests_burst, l.requests_per_minute), l.requests_per_minute * 1000000),
        l.model_inflight, l.model_tokens_minute, l.model_tokens_day,
        l.cost_microusd_day, l.tool_calls_day, l.high_risk_day, l.journal_bytes
    from jsonb_to_record(p_spec -> 'limits') l(
        requests_per_minute bigint, requests_burst bigint, model_inflight bigint, model_tokens_minute bigint,
        model_tokens_day bigint, cost_microusd_day bigint, tool_calls_day bigint, high_risk_day bigint,
        journal_bytes bigint
    );
$$;

-- One row an item, in the order of `p_*`. codes: allowed | denied | suspended | throttled | budget_exceeded |
-- approval_required | recorded (settled before, `output` holds it) | open (begun before, not settled) | key_reuse |
-- stale_policy | stale_labels | lease_lost | unknown_scope | skipped (its scope was locked by somebody else).
create or replace function tenantry.begin_v1(
    p_instance text,
    p_skipped boolean[],        -- by scope: known, but locked by a foreign transaction
    p_scope_tenant text[], p_scope_level smallint[], p_scope_subject text[],
    p_tenant text[], p_scope_0 integer[], p_scope_1 integer[], p_scope_2 integer[], p_scope_3 integer[],
    p_action_id text[], p_key text[], p_workspace text[], p_agent text[], p_run text[], p_principal text[],
    p_kind text[], p_name text[], p_risk smallint[], p_system text[], p_input_sha256 bytea[],
    p_policy_version bigint[], p_fleet_version bigint[], p_attempt integer[],
    p_allow boolean[], p_reason text[],              -- reason: JSON array of policy ids
    p_approvers text[], p_approval_digest bytea[],   -- approvers: comma-separated roles, '' when none is needed
    p_labels text[], p_labels_epoch bigint[],        -- labels: comma-separated, sorted
    p_concurrent_runs bigint[], p_model_inflight bigint[], p_model_tokens bigint[], p_cost_microusd bigint[],
    p_tool_calls bigint[], p_high_risk bigint[], p_journal_bytes bigint[],
    p_timeout_ms bigint[], p_content bytea[], p_content_sha256 bytea[],
    p_run_spec text[]                                -- JSON of a run to open, null otherwise
) returns table (ord integer, code text, log_position bigint, detail jsonb, prior_action_id text, output bytea)
language plpgsql
as $$
#variable_conflict use_column
declare
    c_big constant bigint := 4611686018427387904;
    n constant integer := cardinality(p_action_id);
    v_now constant timestamptz := tenantry.now();
    v_now_us constant bigint := (extract(epoch from v_now) * 1000000)::bigint;
    v_minute constant bigint := v_now_us / 60000000 * 60;
    v_day constant bigint := v_now_us / 86400000000 * 86400;
    v_fleet tenantry.fleet_scope%rowtype;
    -- by scope
    v_known boolean[]; v_admits smallint[]; v_by_approval boolean[]; v_policy_version bigint[]; v_log_size bigint[];
    v_attempt integer[]; v_lease_live boolean[]; v_labels text[]; v_labels_epoch bigint[]; v_overrun bigint[];
    v_requests bigint[]; v_runs bigint[]; v_inflight bigint[]; v_minute_tokens bigint[]; v_day_tokens bigint[];
    v_cost bigint[]; v_tools bigint[]; v_high_risk bigint[]; v_bytes bigint[];
    -- by item
    v_first integer[]; v_prior text[]; v_prior_state text[]; v_prior_digest bytea[];
    v_winner integer[] := array_fill(null::integer, array[n]);
    v_code text[] := array_fill(null::text, array[n]);
    v_level smallint[] := array_fill(null::smallint, array[n]);
    v_meter text[] := array_fill(null::text, array[n]);
    v_approval text[] := array_fill(null::text, array[n]);
    v_position bigint[] := array_fill(null::bigint, array[n]);
    v_keep_content boolean[] := array_fill(true, array[n]);
    v_at integer[] := array_fill(null::integer, array[n]); -- the scope that refused
    -- of the item at hand
    i integer; k integer; v_scopes integer[]; v_winning integer; v_needs_approval boolean;
    v_level_at smallint; v_failed text;
    v_detail jsonb[] := array_fill(null::jsonb, array[n]);
    v_refused boolean; v_used_approval boolean;
begin
    select * into v_fleet from tenantry.fleet_scope;

    -- Load what every scope has left. One index probe a scope: nested loop from the arrays to the primary key.
    select
        array_agg(s.tenant_id is not null order by w.place),
        array_agg(case
            when s.killed then -1::smallint
            when s.mode_expires_at <= v_now then 3::smallint
            else tenantry.mode_admits_v1(s.mode) end order by w.place),
        array_agg(coalesce(s.mode = 'approvals_only' and (s.mode_expires_at <= v_now) is not true, false)
            order by w.place),
        array_agg(s.policy_version order by w.place),
        array_agg(s.log_size order by w.place),
        array_agg(s.attempt order by w.place),
        array_agg(coalesce(s.lease_expires_at > v_now, false) order by w.place),
        array_agg(array_to_string(s.labels, ',') order by w.place),
        array_agg(s.labels_epoch order by w.place),
        array_agg(s.overrun_tokens + s.overrun_microusd order by w.place),
        array_agg(coalesce(
            (s.requests_interval_us * s.requests_burst - (greatest(s.requests_tat_us, v_now_us) - v_now_us))
            / s.requests_interval_us, c_big) order by w.place),
        array_agg(tenantry.left_of_v1(s.concurrent_runs_limit, 0, s.concurrent_runs_reserved, true) order by w.place),
        array_agg(tenantry.left_of_v1(s.model_inflight_limit, 0, s.model_inflight_reserved, true) order by w.place),
        array_agg(tenantry.left_of_v1(s.model_tokens_minute_limit, s.model_tokens_minute_used,
            s.model_tokens_minute_reserved, s.model_tokens_minute_window = v_minute) order by w.place),
        array_agg(tenantry.left_of_v1(s.model_tokens_day_limit, s.model_tokens_day_used,
            s.model_tokens_day_reserved, s.day_window = case s.level when 3 then 0 else v_day end) order by w.place),
        array_agg(tenantry.left_of_v1(s.cost_microusd_day_limit, s.cost_microusd_day_used,
            s.cost_microusd_day_reserved, s.day_window = case s.level when 3 then 0 else v_day end) order by w.place),
        array_agg(tenantry.left_of_v1(s.tool_calls_day_limit, s.tool_calls_day_used,
            s.tool_calls_day_reserved, s.day_window = case s.level when 3 then 0 else v_day end) order by w.place),
        array_agg(tenantry.left_of_v1(s.high_risk_day_limit, s.high_risk_day_used,
            s.high_risk_day_reserved, s.day_window = case s.level when 3 then 0 else v_day end) order by w.place),
        array_agg(tenantry.left_of_v1(s.journal_bytes_limit, s.journal_bytes_used, s.journal_bytes_reserved, true)
            order by w.place)
    into
        v_known, v_admits, v_by_approval, v_policy_version, v_log_size, v_attempt, v_lease_live, v_labels,
        v_labels_epoch, v_overrun, v_requests, v_runs, v_inflight, v_minute_tokens, v_day_tokens, v_cost, v_tools,
        v_high_risk, v_bytes
    from unnest(p_scope_tenant, p_scope_level, p_scope_subject) with ordinality w(tenant_id, level, subject_id, place)
    left join tenantry.scopes s using (tenant_id, level, subject_id);

    -- INVARIANT 5: which items share a key, in this batch and with what was begun before.
    if exists (select from unnest(p_key) given(key) where given.key is not null) then
        select array_agg(g.first_ord order by g.place),
            array_agg(g.action_id order by g.place),
            array_agg(g.state order by g.place),
            array_agg(g.input_sha256 order by g.place)
        into v_first, v_prior, v_prior_state, v_prior_digest
        from (
            select
                it.place,
                case when it.key is null then it.place
                    else min(it.place) over (partition by it.tenant_id, it.key) end as first_ord,
                j.action_id, j.state, j.input_sha256
            from unnest(p_tenant, p_key) with ordinality it(tenant_id, key, place)
            left join tenantry.journal j on j.tenant_id = it.tenant_id and j.idempotency_key = it.key
        ) g;
    end if;

    for i in 1..n loop
        v_scopes := array[p_scope_0[i], p_scope_1[i], p_scope_2[i], p_scope_3[i]];
        v_needs_approval := p_approvers[i] <> '';

        -- Scopes: the item's own tenant's, known, not held by somebody else; then modes and switches, top down.
        for v_level_at in 0..3 loop
            k := v_scopes[v_level_at + 1];
            continue when k = 0;
            if p_scope_tenant[k] <> p_tenant[i] then
                raise exception 'item % names a scope of another tenant', i using errcode = 'insufficient_privilege';
            end if;
            if p_skipped[k] then
                v_code[i] := 'skipped';
                exit;
            elsif not v_known[k] then
                v_code[i] := 'unknown_scope';
                v_level[i] := v_level_at;
                exit;
            elsif v_admits[k] < p_risk[i] then
                if v_by_approval[k] then
                    v_needs_approval := true;
                else
                    v_code[i] := 'suspended';
                    v_level[i] := v_level_at;
                    exit;
                end if;
            end if;
        end loop;
        if v_code[i] is null and tenantry.mode_admits_v1(v_fleet.mode) < p_risk[i] then
            if v_fleet.mode = 'approvals_only' then
                v_needs_approval := true;
            else
                v_code[i] := 'suspended';
                v_level[i] := -1;
            end if;
        end if;
        continue when v_code[i] is not null;

        -- The lease of the run's attempt.
        if p_scope_3[i] <> 0 and (not v_lease_live[p_scope_3[i]] or v_attempt[p_scope_3[i]] <> p_attempt[i]) then
            v_code[i] := 'lease_lost';
            continue;
        end if;

        -- INVARIANT 5: one key, one effect. A refused winner frees the key for the next in line.
        if p_key[i] is not null then
            v_winning := v_winner[v_first[i]];
            if v_winning is not null then
                v_prior[i] := p_action_id[v_winning];
                v_code[i] := case when p_input_sha256[v_winning] = p_input_sha256[i] then 'open' else 'key_reuse' end;
                continue;
            elsif v_prior[i] is not null then
                v_code[i] := case
                    when v_prior_digest[i] <> p_input_sha256[i] then 'key_reuse'
                    when v_prior_state[i] = 'begun' then 'open'
                    else 'recorded' end;
                continue;
            end if;
        end if;

        -- The decision must be of now: same policy version, and it saw every label that the run has.
        if p_policy_version[i] <> v_policy_version[p_scope_0[i]] or p_fleet_version[i] <> v_fleet.policy_version then
            v_code[i] := 'stale_policy';
            continue;
        end if;
        if p_scope_3[i] <> 0 and (
            p_labels_epoch[i] <> v_labels_epoch[p_scope_3[i]]
            or (v_labels[p_scope_3[i]] <> '' and not
                string_to_array(v_labels[p_scope_3[i]], ',') <@ string_to_array(p_labels[i], ','))
        ) then
            v_code[i] := 'stale_labels';
            continue;
        end if;
        if not p_allow[i] then
            v_code[i] := 'denied';
            continue;
        end if;

        -- A person's approval, bound by digest, used once (marked used below, and only if all else holds).
        if v_needs_approval then
            select a.approval_id into v_approval[i]
            from tenantry.approvals a
            where a.tenant_id = p_tenant[i] and a.run_id = p_run[i] and a.digest = p_approval_digest[i]
                and a.state = 'approved' and a.expires_at > v_now
                and a.approval_id <> all (array_remove(v_approval, null));
            if v_approval[i] is null then
                v_code[i] := 'approval_required';
                continue;
            end if;
        end if;

        -- INVARIANT 3: every meter of every level holds it, or none is touched.
        v_failed := null;
        for v_level_at in 0..3 loop
            k := v_scopes[v_level_at + 1];
            continue when k = 0;
            if v_requests[k] < 1 or v_runs[k] < p_concurrent_runs[i] or v_inflight[k] < p_model_inflight[i]
                or v_minute_tokens[k] < p_model_tokens[i] or v_day_tokens[k] < p_model_tokens[i]
                or v_cost[k] < p_cost_microusd[i] or v_tools[k] < p_tool_calls[i]
                or v_high_risk[k] < p_high_risk[i] or v_bytes[k] < p_journal_bytes[i]
                or (v_overrun[k] > 0 and p_model_tokens[i] > 0)
            then
                v_failed := case
                    when v_requests[k] < 1 then 'requests'
                    when v_runs[k] < p_concurrent_runs[i] then 'concurrent_runs'
                    when v_overrun[k] > 0 and p_model_tokens[i] > 0 then 'overrun'
                    when v_day_tokens[k] < p_model_tokens[i] then 'model_tokens_day'
                    when v_cost[k] < p_cost_microusd[i] then 'cost_microusd_day'
                    when v_tools[k] < p_tool_calls[i] then 'tool_calls_day'
                    when v_high_risk[k] < p_high_risk[i] then 'high_risk_day'
                    when v_bytes[k] < p_journal_bytes[i] then 'journal_bytes'
                    when v_minute_tokens[k] < p_model_tokens[i] then 'model_tokens_minute'
                    else 'model_inflight' end;
                exit;
            end if;
        end loop;
        if v_failed is not null then
            v_code[i] := case when v_failed in ('requests', 'concurrent_runs', 'model_inflight')
                then 'throttled' else 'budget_exceeded' end;
            v_level[i] := v_level_at;
            v_meter[i] := v_failed;
            v_approval[i] := null;
            continue;
        end if;

        v_code[i] := 'allowed';
        if p_key[i] is not null then
            v_winner[v_first[i]] := i;
        end if;
        foreach k in array v_scopes loop
            continue when k = 0;
            v_requests[k] := v_requests[k] - 1;
            v_bytes[k] := v_bytes[k] - p_journal_bytes[i];
            if p_model_inflight[i] > 0 then
                v_inflight[k] := v_inflight[k] - p_model_inflight[i];
                v_minute_tokens[k] := v_minute_tokens[k] - p_model_tokens[i];
                v_day_tokens[k] := v_day_tokens[k] - p_model_tokens[i];
                v_cost[k] := v_cost[k] - p_cost_microusd[i];
            else
                v_runs[k] := v_runs[k] - p_concurrent_runs[i];
                v_tools[k] := v_tools[k] - p_tool_calls[i];
                v_high_risk[k] := v_high_risk[k] - p_high_risk[i];
            end if;
        end loop;
    end loop;

    -- Positions in each tenant's log, gapless, for whatever is journaled. A refusal keeps its content only while the
    -- tenant's journal budget holds it: a flood of refusals must not be a way around the meter.
    v_refused := false;
    v_used_approval := false;
    for i in 1..n loop
        v_refused := v_refused or v_code[i] <> 'allowed';
        v_used_approval := v_used_approval or (v_code[i] = 'allowed' and v_approval[i] is not null);
        v_at[i] := case v_level[i] when 0 then p_scope_0[i] when 1 then p_scope_1[i] when 2 then p_scope_2[i]
            when 3 then p_scope_3[i] end;
        if v_code[i] in ('allowed', 'denied', 'suspended', 'throttled', 'budget_exceeded', 'approval_required') then
            k := p_scope_0[i];
            v_position[i] := v_log_size[k];
            v_log_size[k] := v_log_size[k] + 1;
            if v_code[i] <> 'allowed' then
                if v_bytes[k] >= octet_length(p_content[i]) then
                    v_bytes[k] := v_bytes[k] - octet_length(p_content[i]);
                else
                    v_keep_content[i] := false;
                end if;
            end if;
        end if;
    end loop;

    -- Post every scope's share of what was allowed, rolling windows over, in one update by primary key.
    update tenantry.scopes s
    set
        log_size = s.log_size + d.entries,
        refusals = s.refusals + d.refusals,
        requests_tat_us = case when d.allowed > 0 and s.requests_interval_us is not null
            then greatest(s.requests_tat_us, v_now_us) + d.allowed * s.requests_interval_us
            else s.requests_tat_us end,
        concurrent_runs_reserved = s.concurrent_runs_reserved + d.concurrent_runs,
        model_inflight_reserved = s.model_inflight_reserved + d.model_inflight,
        model_tokens_minute_window = v_minute,
        model_tokens_minute_used =
            case when s.model_tokens_minute_window = v_minute then s.model_tokens_minute_used else 0 end,
        model_tokens_minute_reserved = d.model_tokens
            + case when s.model_tokens_minute_window = v_minute then s.model_tokens_minute_reserved else 0 end,
        day_window = d.day,
        model_tokens_day_used = case when s.day_window = d.day then s.model_tokens_day_used else 0 end,
        model_tokens_day_reserved = d.model_tokens
            + case when s.day_window = d.day then s.model_tokens_day_reserved else 0 end,
        cost_microusd_day_used = case when s.day_window = d.day then s.cost_microusd_day_used else 0 end,
        cost_microusd_day_reserved = d.cost_microusd
            + case when s.day_window = d.day then s.cost_microusd_day_reserved else 0 end,
        tool_calls_day_used = case when s.day_window = d.day then s.tool_calls_day_used else 0 end,
        tool_calls_day_reserved = d.tool_calls
            + case when s.day_window = d.day then s.tool_calls_day_reserved else 0 end,
        high_risk_day_used = case when s.day_window = d.day then s.high_risk_day_used else 0 end,
        high_risk_day_reserved = d.high_risk
            + case when s.day_window = d.day then s.high_risk_day_reserved else 0 end,
        journal_bytes_used = s.journal_bytes_used + d.refused_bytes,
        journal_bytes_reserved = s.journal_bytes_reserved + d.journal_bytes
    from (
        select
            t.place,
            case p_scope_level[t.place] when 3 then 0 else v_day end as day,
            count(*) filter (where it.code = 'allowed') as allowed,
            count(*) filter (where t.level = 0) as entries,
            count(*) filter (where it.code <> 'allowed') as refusals,
            coalesce(sum(it.concurrent_runs) filter (where it.code = 'allowed'), 0)::bigint as concurrent_runs,
            coalesce(sum(it.model_inflight) filter (where it.code = 'allowed'), 0)::bigint as model_inflight,
            coalesce(sum(it.model_tokens) filter (where it.code = 'allowed'), 0)::bigint as model_tokens,
            coalesce(sum(it.cost_microusd) filter (where it.code = 'allowed'), 0)::bigint as cost_microusd,
            coalesce(sum(it.tool_calls) filter (where it.code = 'allowed'), 0)::bigint as tool_calls,
            coalesce(sum(it.high_risk) filter (where it.code = 'allowed'), 0)::bigint as high_risk,
            coalesce(sum(it.journal_bytes) filter (where it.code = 'allowed'), 0)::bigint as journal_bytes,
            coalesce(sum(octet_length(it.content)) filter (
                where it.code <> 'allowed' and it.keep_content and t.level = 0), 0)::bigint as refused_bytes
        from unnest(
            v_code, v_position, v_at, v_keep_content, p_content, p_scope_0, p_scope_1, p_scope_2, p_scope_3,
            p_concurrent_runs, p_model_inflight, p_model_tokens, p_cost_microusd, p_tool_calls, p_high_risk,
            p_journal_bytes
        ) it(
            code, log_position, refused_at, keep_content, content, scope_0, scope_1, scope_2, scope_3,
            concurrent_runs, model_inflight, model_tokens, cost_microusd, tool_calls, high_risk, journal_bytes
        )
        cross join lateral (values (it.scope_0, 0), (it.scope_1, 1), (it.scope_2, 2), (it.scope_3, 3)) t(place, level)
        where t.place <> 0 and it.log_position is not null
            and (it.code = 'allowed' or t.level = 0 or t.place = it.refused_at)
        group by t.place
    ) d
    where s.tenant_id = p_scope_tenant[d.place] and s.level = p_scope_level[d.place]
        and s.subject_id = p_scope_subject[d.place];

    -- What a refused caller is told, read after the update: used and reserved as they stand now.
    if v_refused then
        for i in 1..n loop
            continue when v_code[i] is null or v_code[i] = 'allowed';
            v_detail[i] := case
                when v_code[i] in ('suspended', 'throttled', 'budget_exceeded') then tenantry.refusal_detail_v1(
                    v_code[i], p_tenant[i], v_level[i], p_scope_subject[v_at[i]], v_meter[i], v_now_us,
                    case v_meter[i]
                        when 'model_tokens_minute' then p_model_tokens[i]
                        when 'model_tokens_day' then p_model_tokens[i]
                        when 'cost_microusd_day' then p_cost_microusd[i]
                        when 'tool_calls_day' then p_tool_calls[i]
                        when 'high_risk_day' then p_high_risk[i]
                        when 'journal_bytes' then p_journal_bytes[i]
                        else 1 end)
                when v_code[i] = 'approval_required' then tenantry.ask_approval_v1(
                    p_tenant[i], p_run[i], p_action_id[i], p_approval_digest[i], p_approvers[i], v_now)
                when v_code[i] = 'stale_policy' then jsonb_build_object(
                    'policy_version', v_policy_version[p_scope_0[i]], 'fleet_version', v_fleet.policy_version)
                when v_code[i] = 'stale_labels' then jsonb_build_object(
                    'labels', v_labels[p_scope_3[i]], 'labels_epoch', v_labels_epoch[p_scope_3[i]])
            end;
        end loop;
    end if;

    -- INVARIANT 9: the intent is durable before anything is performed.
    insert into tenantry.journal (
        tenant_id, action_id, idempotency_key, workspace_id, agent_id, run_id, principal_id, kind, action_name, risk,
        target_system, input_sha256, policy_version, reason, verdict, detail, state, instance_id, begun_at, expires_at,
        minute_window, day_window, concurrent_runs, model_inflight, model_tokens, cost_microusd, tool_calls, high_risk,
        journal_bytes, content, content_sha256
    )
    select
        it.tenant_id, it.action_id, case when it.code = 'allowed' then it.key end, it.workspace, it.agent, it.run,
        it.principal, it.kind, it.name, it.risk, it.system, it.input_sha256, it.policy_version, it.reason::jsonb,
        it.code, it.detail, case when it.code = 'allowed' then 'begun' else 'refused' end, p_instance, v_now,
        v_now + it.timeout_ms * interval '1 millisecond', v_minute, v_day, it.concurrent_runs, it.model_inflight,
        it.model_tokens, it.cost_microusd, it.tool_calls, it.high_risk, it.journal_bytes,
        case when it.keep_content then it.content end, it.content_sha256
    from unnest(
        v_code, v_position, v_detail, v_keep_content, p_tenant, p_action_id, p_key, p_workspace, p_agent, p_run,
        p_principal, p_kind, p_name, p_risk, p_system, p_input_sha256, p_policy_version, p_reason, p_timeout_ms,
        p_concurrent_runs, p_model_inflight, p_model_tokens, p_cost_microusd, p_tool_calls, p_high_risk,
        p_journal_bytes, p_content, p_content_sha256
    ) it(
        code, log_position, detail, keep_content, tenant_id, action_id, key, workspace, agent, run, principal, kind,
        name, risk, system, input_sha256, policy_version, reason, timeout_ms, concurrent_runs, model_inflight,
        model_tokens, cost_microusd, tool_calls, high_risk, journal_bytes, content, content_sha256
    )
    where it.log_position is not null;

    -- INVARIANT 10: every entry has its position, durable with it.
    insert into tenantry.log_leaves (tenant_id, position, action_id, phase, leaf)
    select it.tenant_id, it.log_position, it.action_id, 'begin',
        tenantry.leaf_v1(it.tenant_id, it.log_position, it.action_id, 'begin', it.code, it.content_sha256)
    from unnest(v_code, v_position, p_tenant, p_action_id, p_content_sha256)
        it(code, log_position, tenant_id, action_id, content_sha256)
    where it.log_position is not null;

    if v_used_approval then
        update tenantry.approvals a
        set state = 'used'
        from unnest(v_code, p_tenant, v_approval) it(code, tenant_id, approval_id)
        where it.code = 'allowed' and a.tenant_id = it.tenant_id and a.approval_id = it.approval_id;
    end if;

    -- A run that was allowed to start: its row, and its own scope with a live lease.
    if exists (select from unnest(p_run_spec) given(spec) where given.spec is not null) then
        perform tenantry.open_run_v1(
            it.tenant_id, it.run, it.workspace, it.agent, it.principal, it.action_id, it.spec::jsonb, v_now)
        from unnest(v_code, p_tenant, p_run, p_workspace, p_agent, p_principal, p_action_id, p_run_spec)
            it(code, tenant_id, run, workspace, agent, principal, action_id, spec)
        where it.code = 'allowed' and it.spec is not null;
    end if;

    return query
    select it.place::integer, it.code, it.log_position,
        case when it.code in ('recorded', 'open') then to_jsonb(p) - 'output' else it.detail end,
        it.prior, p.output
    from unnest(v_code, v_position, v_detail, p_tenant, v_prior) with ordinality
        it(code, log_position, detail, tenant_id, prior, place)
    left join lateral (
        select j.state, j.status, j.risk, j.kind, j.used_tokens, j.used_microusd, j.output
        from tenantry.journal j
        where j.tenant_id = it.tenant_id and j.action_id = it.prior and it.code in ('recorded', 'open')
    ) p on true;
end
$$;
