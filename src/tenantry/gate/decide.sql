-- decide: the exact verdicts of a batch, item by item in the order of arrival. `begin` calls it only when not everything
-- fits at once; all scope rows are locked by then.

-- name: decide :script
-- One row of arrays, an element an item: code (see begin.sql); the level, scope and meter that refused; the approval to
-- use up; whether a refusal's content is kept; the earlier action with the same key.
create or replace function tenantry.decide_v1(
    p_items tenantry.begin_item_v1[],
    p_skipped tenantry.scope_key_v1[] -- locked by a foreign transaction
) returns table (
    code text[], level smallint[], meter text[], approval text[], keep_content boolean[],
    prior text[]
)
language plpgsql
as $$
#variable_conflict use_column
declare
    c_big constant bigint := 4611686018427387904;
    n constant integer := cardinality(p_items);
    v_now constant timestamptz := tenantry.now();
    v_now_us constant bigint := (extract(epoch from v_now) * 1000000)::bigint;
    v_minute constant bigint := v_now_us / 60000000 * 60;
    v_day constant bigint := v_now_us / 86400000000 * 86400;
    v_fleet tenantry.fleet_scope%rowtype;
    v_fleet_admits integer;
    -- the scopes of each item, by number
    v_scope_0 integer[]; v_scope_1 integer[]; v_scope_2 integer[]; v_scope_3 integer[];
    -- by scope
    v_keys tenantry.scope_key_v1[]; v_skipped boolean[];
    v_known boolean[]; v_admits integer[]; v_by_approval boolean[]; v_policy_version bigint[];
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
    v_keep_content boolean[] := array_fill(true, array[n]);
    -- of the item at hand
    it tenantry.begin_item_v1; i integer; k integer; v_scopes integer[]; v_winning integer; v_needs_approval boolean;
    v_failed text;
begin
    select * into v_fleet from tenantry.fleet_scope;
    v_fleet_admits := case v_fleet.mode
        when 'normal' then 3 when 'drafts_only' then 1 when 'suspended' then -1 else 0 end;

    -- Number the scopes; 0 is 'none'.
    select
        array_agg(w.number order by w.place) filter (where w.level = 0),
        array_agg(w.number order by w.place) filter (where w.level = 1),
        array_agg(w.number order by w.place) filter (where w.level = 2),
        array_agg(w.number order by w.place) filter (where w.level = 3),
        array_agg(row(w.tenant_id, w.level, w.subject_id)::tenantry.scope_key_v1 order by w.number)
            filter (where w.first_time)
    into v_scope_0, v_scope_1, v_scope_2, v_scope_3, v_keys
    from (
        select it.ordinality as place, it.tenant_id, t.level::smallint as level, t.subject_id,
            case when t.subject_id is null then 0
                else dense_rank() over (
                    partition by t.subject_id is null order by it.tenant_id, t.level, t.subject_id)
                end::integer as number,
            t.subject_id is not null and row_number() over (
                partition by it.tenant_id, t.level, t.subject_id order by it.ordinality) = 1 as first_time
        from unnest(p_items) with ordinality it
        cross join lateral (values (0, it.tenant_id), (1, it.workspace), (2, it.agent), (3, it.scope_run))
            t(level, subject_id)
    ) w;

    -- Load what every scope has left. One index probe a scope: nested loop from the arrays to the primary key.
    select
        array_agg(row(w.tenant_id, w.level, w.subject_id)::tenantry.scope_key_v1 = any (p_skipped) order by w.ordinality),
        array_agg(s.tenant_id is not null order by w.ordinality),
        array_agg(case
            when s.killed then -1
            when s.mode = 'normal' or s.mode_expires_at <= v_now then 3
            when s.mode = 'drafts_only' then 1
            when s.mode in ('read_only', 'approvals_only') then 0
            else -1 end order by w.ordinality),
        array_agg(coalesce(
            not s.killed and s.mode = 'approvals_only' and (s.mode_expires_at <= v_now) is not true, false)
            order by w.ordinality),
        array_agg(s.policy_version order by w.ordinality),
        array_agg(s.attempt order by w.ordinality),
        array_agg(coalesce(s.lease_expires_at > v_now, false) order by w.ordinality),
        array_agg(array_to_string(s.labels, ',') order by w.ordinality),
        array_agg(s.labels_epoch order by w.ordinality),
        array_agg(s.overrun_tokens + s.overrun_microusd order by w.ordinality),
        array_agg(coalesce(
            (s.requests_interval_us * s.requests_burst - (greatest(s.requests_tat_us, v_now_us) - v_now_us))
            / s.requests_interval_us, c_big) order by w.ordinality),
        array_agg(tenantry.left_of_v1(s.concurrent_runs_limit, 0, s.concurrent_runs_reserved, 0, 0) order by w.ordinality),
        array_agg(tenantry.left_of_v1(s.model_inflight_limit, 0, s.model_inflight_reserved, 0, 0) order by w.ordinality),
        array_agg(tenantry.left_of_v1(s.model_tokens_minute_limit, s.model_tokens_minute_used,
            s.model_tokens_minute_reserved, s.model_tokens_minute_window, v_minute) order by w.ordinality),
        array_agg(tenantry.left_of_v1(s.model_tokens_day_limit, s.model_tokens_day_used,
            s.model_tokens_day_reserved, s.day_window, case s.level when 3 then 0 else v_day end) order by w.ordinality),
        array_agg(tenantry.left_of_v1(s.cost_microusd_day_limit, s.cost_microusd_day_used,
            s.cost_microusd_day_reserved, s.day_window, case s.level when 3 then 0 else v_day end) order by w.ordinality),
        array_agg(tenantry.left_of_v1(s.tool_calls_day_limit, s.tool_calls_day_used,
            s.tool_calls_day_reserved, s.day_window, case s.level when 3 then 0 else v_day end) order by w.ordinality),
        array_agg(tenantry.left_of_v1(s.high_risk_day_limit, s.high_risk_day_used,
            s.high_risk_day_reserved, s.day_window, case s.level when 3 then 0 else v_day end) order by w.ordinality),
        array_agg(tenantry.left_of_v1(s.journal_bytes_limit, s.journal_bytes_used, s.journal_bytes_reserved, 0, 0)
            order by w.ordinality)
    into
        v_skipped, v_known, v_admits, v_by_approval, v_policy_version, v_attempt, v_lease_live, v_labels,
        v_labels_epoch, v_overrun, v_requests, v_runs, v_inflight, v_minute_tokens, v_day_tokens, v_cost, v_tools,
        v_high_risk, v_bytes
    from unnest(v_keys) with ordinality w
    left join lateral (
        select s.* from tenantry.scopes s
        where s.tenant_id = w.tenant_id and s.level = w.level and s.subject_id = w.subject_id
        offset 0
    ) s on true;

    -- INVARIANT 5: which items share a key, in this batch and with what was begun before.
    if exists (select from unnest(p_items) x where x.key is not null) then
        select array_agg(g.first_ord order by g.place),
            array_agg(g.action_id order by g.place),
            array_agg(g.state order by g.place),
            array_agg(g.input_sha256 order by g.place)
        into v_first, v_prior, v_prior_state, v_prior_digest
        from (
            select
                x.ordinality as place,
                case when x.key is null then x.ordinality
                    else min(x.ordinality) over (partition by x.tenant_id, x.key) end as first_ord,
                j.action_id, j.state, j.input_sha256
            from unnest(p_items) with ordinality x
            left join lateral (
                select j.action_id, j.state, j.input_sha256 from tenantry.journal j
                where j.tenant_id = x.tenant_id and j.idempotency_key = x.key
                offset 0
            ) j on true
        ) g;
    end if;

    for i in 1..n loop
        it := p_items[i];
        v_scopes := array[v_scope_0[i], v_scope_1[i], v_scope_2[i], v_scope_3[i]];
        v_needs_approval := it.approvers <> '';

        -- Scopes: the item's own tenant's, known, not held by somebody else; then modes and switches, top down.
        for v_level_at in 0..3 loop
            k := v_scopes[v_level_at + 1];
            continue when k = 0;
            if v_skipped[k] then
                v_code[i] := 'skipped';
                exit;
            elsif not v_known[k] then
                v_code[i] := 'unknown_scope';
                v_level[i] := v_level_at;
                exit;
            elsif v_admits[k] < it.risk then
                if v_by_approval[k] then
                    v_needs_approval := true;
                else
                    v_code[i] := 'suspended';
                    v_level[i] := v_level_at;
                    exit;
                end if;
            end if;
        end loop;
        if v_code[i] is null and v_fleet_admits < it.risk then
            if v_fleet.mode = 'approvals_only' then
                v_needs_approval := true;
            else
                v_code[i] := 'suspended';
                v_level[i] := -1;
            end if;
        end if;
        continue when v_code[i] is not null;

        -- The lease of the run's attempt.
        if v_scope_3[i] <> 0 and (not v_lease_live[v_scope_3[i]] or v_attempt[v_scope_3[i]] is distinct from it.attempt) then
            v_code[i] := 'lease_lost';
            continue;
        end if;

        -- INVARIANT 5: one key, one effect. A refused winner frees the key for the next in line.
        if it.key is not null then
            v_winning := v_winner[v_first[i]];
            if v_winning is not null then
                v_prior[i] := (p_items[v_winning]).action_id;
                v_code[i] := case when (p_items[v_winning]).input_sha256 = it.input_sha256 then 'open' else 'key_reuse' end;
                continue;
            elsif v_prior[i] is not null then
                v_code[i] := case
                    when v_prior_digest[i] <> it.input_sha256 then 'key_reuse'
                    when v_prior_state[i] = 'begun' then 'open'
                    else 'recorded' end;
                continue;
            end if;
        end if;

        -- The decision must be of now: same policy version, and it saw every label that the run has.
        if it.policy_version <> v_policy_version[v_scope_0[i]] or it.fleet_version <> v_fleet.policy_version then
            v_code[i] := 'stale_policy';
            continue;
        end if;
        if v_scope_3[i] <> 0 and (
            it.labels_epoch <> v_labels_epoch[v_scope_3[i]]
            or (v_labels[v_scope_3[i]] <> '' and not
                string_to_array(v_labels[v_scope_3[i]], ',') <@ string_to_array(it.labels, ','))
        ) then
            v_code[i] := 'stale_labels';
            continue;
        end if;
        if not it.allow then
            v_code[i] := 'denied';
            continue;
        end if;

        -- A person's approval, bound by digest, used once (marked used below, and only if all else holds).
        if v_needs_approval then
            v_approval[i] := (
                select a.approval_id
                from tenantry.approvals a
                where a.tenant_id = it.tenant_id and a.run_id = it.run and a.digest = it.approval_digest
                    and a.state = 'approved' and a.expires_at > v_now
                    and a.approval_id <> all (array_remove(v_approval, null)));
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
            if v_requests[k] < 1 or v_runs[k] < it.concurrent_runs or v_inflight[k] < it.model_inflight
                or v_minute_tokens[k] < it.model_tokens or v_day_tokens[k] < it.model_tokens
                or v_cost[k] < it.cost_microusd or v_tools[k] < it.tool_calls
                or v_high_risk[k] < it.high_risk or v_bytes[k] < it.journal_bytes
                or (v_overrun[k] > 0 and it.model_tokens > 0)
            then
                v_level[i] := v_level_at;
                v_failed := case
                    when v_requests[k] < 1 then 'requests'
                    when v_runs[k] < it.concurrent_runs then 'concurrent_runs'
                    when v_overrun[k] > 0 and it.model_tokens > 0 then 'overrun'
                    when v_day_tokens[k] < it.model_tokens then 'model_tokens_day'
                    when v_cost[k] < it.cost_microusd then 'cost_microusd_day'
                    when v_tools[k] < it.tool_calls then 'tool_calls_day'
                    when v_high_risk[k] < it.high_risk then 'high_risk_day'
                    when v_bytes[k] < it.journal_bytes then 'journal_bytes'
                    when v_minute_tokens[k] < it.model_tokens then 'model_tokens_minute'
                    else 'model_inflight' end;
                exit;
            end if;
        end loop;
        if v_failed is not null then
            v_code[i] := case when v_failed in ('requests', 'concurrent_runs', 'model_inflight')
                then 'throttled' else 'budget_exceeded' end;
            v_meter[i] := v_failed;
            v_approval[i] := null;
            continue;
        end if;

        v_code[i] := 'allowed';
        if it.key is not null then
            v_winner[v_first[i]] := i;
        end if;
        foreach k in array v_scopes loop
            continue when k = 0;
            v_requests[k] := v_requests[k] - 1;
            v_bytes[k] := v_bytes[k] - it.journal_bytes;
            if it.model_inflight > 0 or it.model_tokens > 0 or it.cost_microusd > 0 then
                v_inflight[k] := v_inflight[k] - it.model_inflight;
                v_minute_tokens[k] := v_minute_tokens[k] - it.model_tokens;
                v_day_tokens[k] := v_day_tokens[k] - it.model_tokens;
                v_cost[k] := v_cost[k] - it.cost_microusd;
            end if;
            if it.tool_calls > 0 or it.high_risk > 0 or it.concurrent_runs > 0 then
                v_runs[k] := v_runs[k] - it.concurrent_runs;
                v_tools[k] := v_tools[k] - it.tool_calls;
                v_high_risk[k] := v_high_risk[k] - it.high_risk;
            end if;
        end loop;
    end loop;

    -- A refusal keeps its content only while the tenant's journal budget holds it: a flood of refusals must not be a way
    -- around the meter.
    for i in 1..n loop
        if v_code[i] in ('denied', 'suspended', 'throttled', 'budget_exceeded', 'approval_required') then
            k := v_scope_0[i];
            v_keep_content[i] := v_bytes[k] >= octet_length((p_items[i]).content);
            if v_keep_content[i] then
                v_bytes[k] := v_bytes[k] - octet_length((p_items[i]).content);
            end if;
        end if;
    end loop;
    return query select v_code, v_level, v_meter, v_approval, v_keep_content, v_prior;
end
$$;
