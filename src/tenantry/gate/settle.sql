-- settle: actual usage replaces the reservation, the outcome is journaled. Called by batch.sql inside its
-- transaction, after every scope row named here was locked in the global order; never called alone.

-- name: settle :script
-- One row an item, in the order of `p_*`. codes: settled | already (somebody, usually the reaper, ended it before) |
-- unknown (no such action of this tenant in this scope) | skipped (a scope was locked by somebody else).
--
-- The amounts reserved are read from the journal row, never from the caller. What was used replaces them in the window
-- in which they were reserved: a window that rolled over meanwhile has forgotten them. Used beyond the reservation goes
-- to the overrun meters, so that used + reserved never passes a limit.
create or replace function tenantry.settle_v1(
    p_skipped boolean[],
    p_scope_tenant text[], p_scope_level smallint[], p_scope_subject text[],
    p_tenant text[], p_scope_0 integer[], p_scope_1 integer[], p_scope_2 integer[], p_scope_3 integer[],
    p_action_id text[], p_status text[], p_tokens bigint[], p_microusd bigint[], p_journal_bytes bigint[],
    p_labels text[], p_output bytea[], p_output_sha256 bytea[], p_run_state text[]
) returns table (ord integer, code text, log_position bigint)
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := tenantry.now();
begin
    return query
    with item as (
        select it.*,
            p_skipped[it.scope_0]
            or (it.scope_1 <> 0 and p_skipped[it.scope_1])
            or (it.scope_2 <> 0 and p_skipped[it.scope_2])
            or (it.scope_3 <> 0 and p_skipped[it.scope_3]) as skipped
        from unnest(
            p_tenant, p_scope_0, p_scope_1, p_scope_2, p_scope_3, p_action_id, p_status, p_tokens, p_microusd,
            p_journal_bytes, p_labels, p_output, p_output_sha256, p_run_state
        ) with ordinality it(
            tenant_id, scope_0, scope_1, scope_2, scope_3, action_id, status, tokens, microusd, journal_bytes, labels,
            output, output_sha256, run_state, place
        )
    ),
    -- The first of several settlements of one action wins; the scopes must be the ones that it was begun in.
    ended as (
        update tenantry.journal j
        set
            state = case
                when it.status = 'void' then 'voided'
                when it.status = 'unknown' and j.kind <> 'model' and j.risk > 0 then 'held'
                else 'settled' end,
            status = it.status,
            settled_at = v_now,
            used_tokens = case when it.status = 'void' then 0 else it.tokens end,
            used_microusd = case when it.status = 'void' then 0 else it.microusd end,
            output = it.output,
            output_sha256 = it.output_sha256
        from (
            select distinct on (tenant_id, action_id) * from item where not skipped order by tenant_id, action_id, place
        ) it
        where j.tenant_id = it.tenant_id and j.action_id = it.action_id and j.state = 'begun'
            and p_scope_subject[it.scope_0] = j.tenant_id
            and (it.scope_1 = 0 or p_scope_subject[it.scope_1] = j.workspace_id)
            and (it.scope_2 = 0 or p_scope_subject[it.scope_2] = j.agent_id)
            and (it.scope_3 = 0 or p_scope_subject[it.scope_3] = j.run_id)
        returning it.place, it.scope_0, it.scope_1, it.scope_2, it.scope_3, it.labels, it.run_state,
            least(it.journal_bytes, j.journal_bytes) as used_bytes, j.tenant_id, j.action_id, j.run_id, j.status,
            j.used_tokens, j.used_microusd, j.minute_window, j.day_window, j.concurrent_runs, j.model_inflight,
            j.model_tokens, j.cost_microusd, j.tool_calls, j.high_risk, j.journal_bytes, j.output_sha256
    ),
    placed as (
        select e.place, e.tenant_id, e.action_id, e.status, e.output_sha256,
            s.log_size + row_number() over (partition by e.tenant_id order by e.place) - 1 as log_position
        from ended e
        join tenantry.scopes s on s.tenant_id = e.tenant_id and s.level = 0 and s.subject_id = e.tenant_id
    ),
    leaves as (
        insert into tenantry.log_leaves (tenant_id, position, action_id, phase, leaf)
        select p.tenant_id, p.log_position, p.action_id, 'settle',
            tenantry.leaf_v1(p.tenant_id, p.log_position, p.action_id, 'settle', p.status, p.output_sha256)
        from placed p
    ),
    -- Materialized, so that scopes are probed by their whole key and never by the tenant alone.
    touched as materialized (
        select t.place, t.level::smallint as level, p_scope_subject[t.place] as subject_id, e.tenant_id, e.status,
            e.labels, e.used_bytes, e.used_tokens, e.used_microusd, e.minute_window, e.day_window, e.concurrent_runs,
            e.model_inflight, e.model_tokens, e.cost_microusd, e.tool_calls, e.high_risk, e.journal_bytes
        from ended e
        cross join lateral (values (e.scope_0, 0), (e.scope_1, 1), (e.scope_2, 2), (e.scope_3, 3)) t(place, level)
        where t.place <> 0
    ),
    posted as (
        update tenantry.scopes s
        set
            log_size = s.log_size + d.entries,
            labels = case when d.labels is null then s.labels else (
                select array_agg(distinct l order by l) from unnest(s.labels || string_to_array(d.labels, ',')) l
            ) end,
            concurrent_runs_reserved = s.concurrent_runs_reserved - d.concurrent_runs,
            model_inflight_reserved = s.model_inflight_reserved - d.model_inflight,
            model_tokens_minute_used = s.model_tokens_minute_used + d.minute_posted,
            model_tokens_minute_reserved = s.model_tokens_minute_reserved - d.minute_reserved,
            model_tokens_day_used = s.model_tokens_day_used + d.day_posted,
            model_tokens_day_reserved = s.model_tokens_day_reserved - d.day_reserved,
            cost_microusd_day_used = s.cost_microusd_day_used + d.cost_posted,
            cost_microusd_day_reserved = s.cost_microusd_day_reserved - d.cost_reserved,
            tool_calls_day_used = s.tool_calls_day_used + d.tools_posted,
            tool_calls_day_reserved = s.tool_calls_day_reserved - d.tools_reserved,
            high_risk_day_used = s.high_risk_day_used + d.high_risk_posted,
            high_risk_day_reserved = s.high_risk_day_reserved - d.high_risk_reserved,
            journal_bytes_used = s.journal_bytes_used + d.bytes_posted,
            journal_bytes_reserved = s.journal_bytes_reserved - d.bytes_reserved,
            overrun_tokens = s.overrun_tokens + d.overrun_tokens,
            overrun_microusd = s.overrun_microusd + d.overrun_microusd
        from (
            select
                e.place,
                count(*) filter (where s.level = 0) as entries,
                string_agg(e.labels, ',') filter (where s.level = 3 and e.labels <> '') as labels,
                sum(e.concurrent_runs)::bigint as concurrent_runs,
                sum(e.model_inflight)::bigint as model_inflight,
                coalesce(sum(least(e.used_tokens, e.model_tokens)) filter (where w.minute), 0)::bigint as minute_posted,
                coalesce(sum(e.model_tokens) filter (where w.minute), 0)::bigint as minute_reserved,
                coalesce(sum(least(e.used_tokens, e.model_tokens)) filter (where w.day), 0)::bigint as day_posted,
                coalesce(sum(e.model_tokens) filter (where w.day), 0)::bigint as day_reserved,
                coalesce(sum(least(e.used_microusd, e.cost_microusd)) filter (where w.day), 0)::bigint as cost_posted,
                coalesce(sum(e.cost_microusd) filter (where w.day), 0)::bigint as cost_reserved,
                coalesce(sum(e.tool_calls) filter (where w.day and e.status <> 'void'), 0)::bigint as tools_posted,
                coalesce(sum(e.tool_calls) filter (where w.day), 0)::bigint as tools_reserved,
                coalesce(sum(e.high_risk) filter (where w.day and e.status <> 'void'), 0)::bigint as high_risk_posted,
                coalesce(sum(e.high_risk) filter (where w.day), 0)::bigint as high_risk_reserved,
                sum(e.used_bytes)::bigint as bytes_posted,
                sum(e.journal_bytes)::bigint as bytes_reserved,
                sum(greatest(e.used_tokens - e.model_tokens, 0))::bigint as overrun_tokens,
                sum(greatest(e.used_microusd - e.cost_microusd, 0))::bigint as overrun_microusd
            from touched e
            join tenantry.scopes s
                on s.tenant_id = e.tenant_id and s.level = e.level and s.subject_id = e.subject_id
            cross join lateral (
                select s.model_tokens_minute_window = e.minute_window as minute,
                    s.level = 3 or s.day_window = e.day_window as day
            ) w
            group by e.place
        ) d
        where s.tenant_id = p_scope_tenant[d.place] and s.level = p_scope_level[d.place]
            and s.subject_id = p_scope_subject[d.place]
    ),
    overran as (
        insert into tenantry.incidents (tenant_id, incident_id, kind, detail, opened_at)
        select e.tenant_id, replace(e.action_id, 'act_', 'inc_'), 'provider_overrun',
            jsonb_build_object('action_id', e.action_id, 'run_id', e.run_id, 'billed_tokens', e.used_tokens,
                'bound_tokens', e.model_tokens, 'billed_microusd', e.used_microusd, 'bound_microusd', e.cost_microusd),
            v_now
        from ended e
        where e.used_tokens > e.model_tokens or e.used_microusd > e.cost_microusd
    ),
    closed as (
        update tenantry.runs r
        set state = e.run_state, ended_at = v_now
        from ended e
        where e.run_state is not null and r.tenant_id = e.tenant_id and r.run_id = e.run_id and r.state = 'running'
    )
    select it.place::integer,
        case when it.skipped then 'skipped' when p.place is not null then 'settled'
            when j.action_id is not null then 'already' else 'unknown' end,
        p.log_position
    from item it
    left join placed p on p.place = it.place
    left join tenantry.journal j on j.tenant_id = it.tenant_id and j.action_id = it.action_id;

    -- A run that ended holds no lease: its token counts for nothing from here.
    if exists (select from unnest(p_run_state) given(state) where given.state is not null) then
        update tenantry.scopes s
        set lease_expires_at = v_now
        from unnest(p_tenant, p_action_id, p_run_state) it(tenant_id, action_id, run_state)
        join tenantry.runs r on r.tenant_id = it.tenant_id and r.action_id = it.action_id and r.state <> 'running'
        where it.run_state is not null and s.tenant_id = r.tenant_id and s.level = 3 and s.subject_id = r.run_id
            and s.lease_expires_at > v_now;
    end if;
end
$$;
