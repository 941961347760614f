-- settle_one: the plain call. A batch of one settlement and nothing else; it says the same as settle.sql, at a third of
-- the fixed cost.

-- name: settle_one :script
-- The entry's log position; null when `settle_v1` has to look at it (nothing was changed, and the scope rows are locked).
-- The caller has bound the tenant.
create or replace function tenantry.settle_one_v1(p_item tenantry.settle_item_v1) returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    it constant tenantry.settle_item_v1 := p_item;
    v_position bigint;
begin
    perform
    from (values (0::smallint, it.tenant_id), (1::smallint, it.workspace), (2::smallint, it.agent),
        (3::smallint, it.scope_run)) w(level, subject_id)
    cross join lateral (
        select from tenantry.scopes s
        where s.tenant_id = it.tenant_id and s.level = w.level and s.subject_id = w.subject_id
        for no key update
    ) held;

    with ended as (
        update tenantry.journal j
        set
            state = case
                when it.status = 'void' then 'voided'
                when it.status = 'unknown' and j.kind <> 'model' and j.risk > 0 then 'held'
                else 'settled' end,
            status = it.status,
            idempotency_key = case when it.status = 'void' then null else j.idempotency_key end,
            settled_at = tenantry.now(),
            used_tokens = case when it.status = 'void' then 0 else greatest(it.tokens, 0) end,
            used_microusd = case when it.status = 'void' then 0 else greatest(it.microusd, 0) end,
            output = it.output,
            output_sha256 = it.output_sha256
        where j.tenant_id = it.tenant_id and j.action_id = it.action_id and j.state = 'begun'
            and j.workspace_id = it.workspace and j.agent_id = it.agent
            and it.scope_run is not distinct from case when j.kind <> 'run' then j.run_id end
        returning least(greatest(it.journal_bytes, 0), j.journal_bytes) as used_bytes, j.used_tokens, j.used_microusd,
            j.minute_window, j.day_window, j.concurrent_runs, j.model_inflight, j.model_tokens, j.cost_microusd,
            j.tool_calls, j.high_risk, j.journal_bytes, (it.status <> 'void')::integer as counts
    ),
    posted as (
        update tenantry.scopes s
        set
            log_size = s.log_size + case s.level when 0 then 1 else 0 end,
            labels = case when s.level <> 3 or it.labels = '' then s.labels else (
                select array_agg(distinct l order by l) from unnest(s.labels || string_to_array(it.labels, ',')) l
            ) end,
            concurrent_runs_reserved = s.concurrent_runs_reserved - e.concurrent_runs,
            model_inflight_reserved = s.model_inflight_reserved - e.model_inflight,
            model_tokens_minute_used = s.model_tokens_minute_used
                + case when w.minute then least(e.used_tokens, e.model_tokens) else 0 end,
            model_tokens_minute_reserved = s.model_tokens_minute_reserved
                - case when w.minute then e.model_tokens else 0 end,
            model_tokens_day_used = s.model_tokens_day_used
                + case when w.day then least(e.used_tokens, e.model_tokens) else 0 end,
            model_tokens_day_reserved = s.model_tokens_day_reserved - case when w.day then e.model_tokens else 0 end,
            cost_microusd_day_used = s.cost_microusd_day_used
                + case when w.day then least(e.used_microusd, e.cost_microusd) else 0 end,
            cost_microusd_day_reserved = s.cost_microusd_day_reserved
                - case when w.day then e.cost_microusd else 0 end,
            tool_calls_day_used = s.tool_calls_day_used + case when w.day then e.tool_calls * e.counts else 0 end,
            tool_calls_day_reserved = s.tool_calls_day_reserved - case when w.day then e.tool_calls else 0 end,
            high_risk_day_used = s.high_risk_day_used + case when w.day then e.high_risk * e.counts else 0 end,
            high_risk_day_reserved = s.high_risk_day_reserved - case when w.day then e.high_risk else 0 end,
            journal_bytes_used = s.journal_bytes_used + e.used_bytes,
            journal_bytes_reserved = s.journal_bytes_reserved - e.journal_bytes,
            overrun_tokens = s.overrun_tokens + greatest(e.used_tokens - e.model_tokens, 0),
            overrun_microusd = s.overrun_microusd + greatest(e.used_microusd - e.cost_microusd, 0)
        from ended e
        cross join lateral (values (0::smallint, it.tenant_id), (1::smallint, it.workspace), (2::smallint, it.agent),
            (3::smallint, it.scope_run)) t(level, subject_id)
        cross join lateral (
            select s.ctid as row_at, s.model_tokens_minute_window = e.minute_window as minute,
                s.level = 3 or s.day_window = e.day_window as day
            from tenantry.scopes s
            where s.tenant_id = it.tenant_id and s.level = t.level and s.subject_id = t.subject_id
            offset 0
        ) w
        where s.ctid = w.row_at
        returning s.level, s.log_size - 1 as log_position
    ),
    entry as (
        select p.log_position from posted p where p.level = 0
    ),
    logged as (
        insert into tenantry.log_leaves (tenant_id, position, action_id, phase, leaf)
        select it.tenant_id, e.log_position, it.action_id, 'settle',
            tenantry.leaf_v1(it.tenant_id, e.log_position, it.action_id, 'settle', it.status, it.output_sha256)
        from entry e
    )
    select e.log_position into v_position from entry e;
    return v_position;
end
$$;
