-- settle: actual usage replaces the reservation, the outcome is journaled. Called by batch.sql inside its
-- transaction, after every scope row named here was locked in the global order; never called alone.

-- name: settle :script
-- One row an item of `p_items`. codes: settled | already (somebody, usually the reaper, ended it before) |
-- unknown (no such action of this tenant in this scope) | skipped (a scope was locked by somebody else).
--
-- The amounts reserved are read from the journal row, never from the caller. What was used replaces them in the window
-- in which they were reserved: a window that rolled over meanwhile has forgotten them. Used beyond the reservation goes
-- to the overrun meters, so that used + reserved never passes a limit.
create or replace function tenantry.settle_v1(
    p_items tenantry.settle_item_v1[], p_skipped tenantry.scope_key_v1[]
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
            p_skipped <> '{}' and exists (
                select from unnest(p_skipped) k
                where k.tenant_id = it.tenant_id and (k.level, k.subject_id) in (
                    (0, it.tenant_id), (1, it.workspace), (2, it.agent), (3, it.scope_run))
            ) as skipped
        from unnest(p_items) with ordinality it
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
            -- Nothing was sent, so there is nothing to repeat: the key is free.
            idempotency_key = case when it.status = 'void' then null else j.idempotency_key end,
            settled_at = v_now,
            used_tokens = case when it.status = 'void' then 0 else greatest(it.tokens, 0) end,
            used_microusd = case when it.status = 'void' then 0 else greatest(it.microusd, 0) end,
            output = it.output,
            output_sha256 = it.output_sha256
        from (
            select distinct on (tenant_id, action_id) * from item where not skipped
            order by tenant_id, action_id, ordinality
        ) it
        cross join lateral (
            select j.ctid as row_at from tenantry.journal j
            where j.tenant_id = it.tenant_id and j.action_id = it.action_id
            offset 0
        ) found
        where j.ctid = found.row_at and j.state = 'begun'
            and j.workspace_id = it.workspace and j.agent_id = it.agent
            and it.scope_run is not distinct from case when j.kind <> 'run' then j.run_id end
        returning it.ordinality as place, it.scope_run, it.labels, it.run_state,
            least(greatest(it.journal_bytes, 0), j.journal_bytes) as used_bytes, j.tenant_id, j.action_id, j.workspace_id, j.agent_id,
            j.status, j.used_tokens, j.used_microusd, j.minute_window, j.day_window, j.concurrent_runs,
            j.model_inflight, j.model_tokens, j.cost_microusd, j.tool_calls, j.high_risk, j.journal_bytes,
            j.output_sha256
    ),
    placed as (
        select e.place, e.tenant_id, e.action_id, e.status, e.output_sha256,
            s.log_size + row_number() over (partition by e.tenant_id order by e.place) - 1 as log_position
        from ended e
        cross join lateral (
            select s.log_size from tenantry.scopes s
            where s.tenant_id = e.tenant_id and s.level = 0 and s.subject_id = e.tenant_id
            offset 0
        ) s
    ),
    leaves as (
        insert into tenantry.log_leaves (tenant_id, position, action_id, phase, leaf)
        select p.tenant_id, p.log_position, p.action_id, 'settle',
            tenantry.leaf_v1(p.tenant_id, p.log_position, p.action_id, 'settle', p.status, p.output_sha256)
        from placed p
    ),
    touched as (
        select e.*, t.level::smallint as level, t.subject_id
        from ended e
        cross join lateral (values (0, e.tenant_id), (1, e.workspace_id), (2, e.agent_id), (3, e.scope_run))
            t(level, subject_id)
        where t.subject_id is not null
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
                s.row_at,
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
            -- One probe by whole key: a lateral subquery with OFFSET is never flattened into a join.
            cross join lateral (
                select s.ctid as row_at, s.level, s.model_tokens_minute_window, s.day_window from tenantry.scopes s
                where s.tenant_id = e.tenant_id and s.level = e.level and s.subject_id = e.subject_id
                offset 0
            ) s
            cross join lateral (
                select s.model_tokens_minute_window = e.minute_window as minute,
                    s.level = 3 or s.day_window = e.day_window as day
            ) w
            group by s.row_at
        ) d
        where s.ctid = d.row_at
    )
    select it.ordinality::integer, case when it.skipped then 'skipped' when p.place is not null then 'settled' end,
        p.log_position
    from item it
    left join placed p on p.place = it.ordinality;
end
$$;

-- What is rare after a settlement: why an item found nothing to settle, a bill beyond the bound, a run that ended.
create or replace function tenantry.settle_rest_v1(p_items tenantry.settle_item_v1[])
returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := tenantry.now();
begin
    insert into tenantry.incidents (tenant_id, incident_id, kind, detail, opened_at)
    select j.tenant_id, replace(j.action_id, 'act_', 'inc_'), 'provider_overrun',
        jsonb_build_object('action_id', j.action_id, 'run_id', j.run_id, 'billed_tokens', j.used_tokens,
            'bound_tokens', j.model_tokens, 'billed_microusd', j.used_microusd, 'bound_microusd', j.cost_microusd),
        v_now
    from unnest(p_items) it
    join tenantry.journal j on j.tenant_id = it.tenant_id and j.action_id = it.action_id
    where j.state = 'settled' and (j.used_tokens > j.model_tokens or j.used_microusd > j.cost_microusd)
    on conflict do nothing;

    -- A run that ended holds no lease: its token counts for nothing from here.
    with closed as (
        update tenantry.runs r
        set state = it.run_state, ended_at = v_now, result = it.output
        from unnest(p_items) it
        join tenantry.journal j on j.tenant_id = it.tenant_id and j.action_id = it.action_id and j.kind = 'run'
        where it.run_state is not null and r.tenant_id = j.tenant_id and r.run_id = j.run_id and r.state = 'running'
            and j.state <> 'begun'
        returning r.tenant_id, r.run_id
    )
    update tenantry.scopes s
    set lease_expires_at = v_now
    from closed c
    where s.tenant_id = c.tenant_id and s.level = 3 and s.subject_id = c.run_id;
end
$$;
