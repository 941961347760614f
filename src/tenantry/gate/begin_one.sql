-- begin_one: the plain call. A batch of one intent and nothing else, when nothing stands against it; whatever is not plain
-- goes the batch's way. It exists for its cost alone: an idle gateway's begin is four small statements.

-- name: begin_one :script
-- The entry's log position when the item was begun; null when `begin_v1` has to look at it (nothing was changed, and the
-- scope rows are locked). The caller has bound the tenant and locked the fleet's row.
create or replace function tenantry.begin_one_v1(p_instance text, p_item tenantry.begin_item_v1) returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    it constant tenantry.begin_item_v1 := p_item;
    v_now constant timestamptz := tenantry.now();
    v_now_us constant bigint := extract(epoch from v_now) * 1000000;
    v_minute constant bigint := v_now_us / 60000000 * 60;
    v_day constant bigint := v_now_us / 86400000000 * 86400;
    v_fits boolean;
    v_position bigint;
begin
    -- Lock in order, and see whether the item fits every scope as decided on. The conditions are those of begin_v1.
    select count(*) = case when it.scope_run is null then 3 else 4 end and bool_and(coalesce(
        s.mode = 'normal' and not s.killed
        and case s.level
            when 0 then s.policy_version = it.policy_version
                and f.policy_version = it.fleet_version and f.mode = 'normal'
            when 3 then s.attempt = it.attempt and s.lease_expires_at > v_now and s.labels_epoch = it.labels_epoch
                and (s.labels = '{}' or s.labels <@ string_to_array(it.labels, ','))
            else true end
        and s.model_tokens_minute_window <= v_minute and s.day_window <= s.day
        and (it.model_tokens = 0 or s.overrun_tokens + s.overrun_microusd = 0)
        and coalesce(s.requests_interval_us * (s.requests_burst - 1)
            >= greatest(s.requests_tat_us, v_now_us) - v_now_us, true)
        and coalesce(s.concurrent_runs_reserved + it.concurrent_runs <= s.concurrent_runs_limit, true)
        and coalesce(s.model_inflight_reserved + it.model_inflight <= s.model_inflight_limit, true)
        and coalesce(it.model_tokens + case when s.model_tokens_minute_window = v_minute
            then s.model_tokens_minute_used + s.model_tokens_minute_reserved else 0 end
            <= s.model_tokens_minute_limit, true)
        and coalesce(it.model_tokens + case when s.day_window = s.day
            then s.model_tokens_day_used + s.model_tokens_day_reserved else 0 end <= s.model_tokens_day_limit, true)
        and coalesce(it.cost_microusd + case when s.day_window = s.day
            then s.cost_microusd_day_used + s.cost_microusd_day_reserved else 0 end <= s.cost_microusd_day_limit, true)
        and coalesce(it.tool_calls + case when s.day_window = s.day
            then s.tool_calls_day_used + s.tool_calls_day_reserved else 0 end <= s.tool_calls_day_limit, true)
        and coalesce(it.high_risk + case when s.day_window = s.day
            then s.high_risk_day_used + s.high_risk_day_reserved else 0 end <= s.high_risk_day_limit, true)
        and coalesce(s.journal_bytes_used + s.journal_bytes_reserved + it.journal_bytes <= s.journal_bytes_limit, true), false))
    into v_fits
    from tenantry.fleet_scope f
    cross join lateral (
        select held.*, case w.level when 3 then 0 else v_day end as day
        from (values (0::smallint, it.tenant_id), (1::smallint, it.workspace), (2::smallint, it.agent),
            (3::smallint, it.scope_run)) w(level, subject_id)
        cross join lateral (
            select s.* from tenantry.scopes s
            where s.tenant_id = it.tenant_id and s.level = w.level and s.subject_id = w.subject_id
            for no key update
        ) held
    ) s;
    -- The time was taken before the lock: where a window ended meanwhile, it has to be taken again.
    if extract(epoch from tenantry.now()) >= v_minute + 60 then
        return null;
    end if;
    if (v_fits and it.allow and it.approvers = '' and it.run_spec is null) is not true then
        return null;
    end if;
    -- INVARIANT 5: a key begun before is for decide_v1 to judge. Seen in a statement after the lock, so it is current.
    if it.key is not null and exists (
        select from tenantry.journal j where j.tenant_id = it.tenant_id and j.idempotency_key = it.key
    ) then
        return null;
    end if;

    -- INVARIANTS 3, 9 and 10 in one statement: every meter, the intent, its place in the log.
    with posted as (
        update tenantry.scopes s
        set
            log_size = s.log_size + case s.level when 0 then 1 else 0 end,
            requests_tat_us = case when s.requests_interval_us is null then s.requests_tat_us
                else greatest(s.requests_tat_us, v_now_us) + s.requests_interval_us end,
            concurrent_runs_reserved = s.concurrent_runs_reserved + it.concurrent_runs,
            model_inflight_reserved = s.model_inflight_reserved + it.model_inflight,
            model_tokens_minute_window = v_minute,
            model_tokens_minute_used =
                case when s.model_tokens_minute_window = v_minute then s.model_tokens_minute_used else 0 end,
            model_tokens_minute_reserved = it.model_tokens
                + case when s.model_tokens_minute_window = v_minute then s.model_tokens_minute_reserved else 0 end,
            day_window = w.day,
            model_tokens_day_used = case when s.day_window = w.day then s.model_tokens_day_used else 0 end,
            model_tokens_day_reserved = it.model_tokens
                + case when s.day_window = w.day then s.model_tokens_day_reserved else 0 end,
            cost_microusd_day_used = case when s.day_window = w.day then s.cost_microusd_day_used else 0 end,
            cost_microusd_day_reserved = it.cost_microusd
                + case when s.day_window = w.day then s.cost_microusd_day_reserved else 0 end,
            tool_calls_day_used = case when s.day_window = w.day then s.tool_calls_day_used else 0 end,
            tool_calls_day_reserved = it.tool_calls
                + case when s.day_window = w.day then s.tool_calls_day_reserved else 0 end,
            high_risk_day_used = case when s.day_window = w.day then s.high_risk_day_used else 0 end,
            high_risk_day_reserved = it.high_risk
                + case when s.day_window = w.day then s.high_risk_day_reserved else 0 end,
            journal_bytes_reserved = s.journal_bytes_reserved + it.journal_bytes
        from (values (0::smallint, it.tenant_id, v_day), (1::smallint, it.workspace, v_day),
            (2::smallint, it.agent, v_day), (3::smallint, it.scope_run, 0)) w(level, subject_id, day)
        cross join lateral (
            select s.ctid as row_at from tenantry.scopes s
            where s.tenant_id = it.tenant_id and s.level = w.level and s.subject_id = w.subject_id
            offset 0
        ) found
        where s.ctid = found.row_at
        returning s.level, s.log_size - 1 as log_position
    ),
    entry as (
        select p.log_position from posted p where p.level = 0
    ),
    written as (
        insert into tenantry.journal (
            tenant_id, action_id, idempotency_key, workspace_id, agent_id, run_id, principal_id, kind, action_name,
            risk, target_system, input_sha256, policy_version, reason, verdict, log_position, state, instance_id,
            begun_at, expires_at, minute_window, day_window, concurrent_runs, model_inflight, model_tokens,
            cost_microusd, tool_calls, high_risk, journal_bytes, content, content_sha256
        )
        select
            it.tenant_id, it.action_id, it.key, it.workspace, it.agent, it.run, it.principal, it.kind, it.name, it.risk,
            it.system, it.input_sha256, it.policy_version, it.reason::jsonb, 'allowed', e.log_position, 'begun',
            p_instance, v_now, v_now + it.timeout_ms * interval '1 millisecond', v_minute, v_day, it.concurrent_runs,
            it.model_inflight, it.model_tokens, it.cost_microusd, it.tool_calls, it.high_risk, it.journal_bytes,
            it.content, it.content_sha256
        from entry e
    ),
    logged as (
        insert into tenantry.log_leaves (tenant_id, position, action_id, phase, leaf)
        select it.tenant_id, e.log_position, it.action_id, 'begin',
            tenantry.leaf_v1(it.tenant_id, e.log_position, it.action_id, 'begin', 'allowed', it.content_sha256)
        from entry e
    )
    select e.log_position into v_position from entry e;
    return v_position;
end
$$;
