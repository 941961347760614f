-- begin: intent, reservation and verdict of a batch of actions. Called by batch.sql inside its transaction, after
-- every scope row named here was locked in the global order; never called alone.

-- name: begin :script
-- What is left of a meter; a null limit does not bound. A window that has not begun yet (the clock was set back) has
-- nothing left: what was counted in it must not be counted away.
create or replace function tenantry.left_of_v1(
    limit_ bigint, used bigint, reserved bigint, window_at bigint, this_window bigint
) returns bigint
language sql immutable parallel safe
return coalesce(limit_ - case
    when window_at = this_window then used + reserved
    when window_at > this_window then limit_
    else 0 end, 4611686018427387904);

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
    -- A statement of its own: the index of open approvals must have forgotten the old one before the new one enters.
    update tenantry.approvals a
    set state = 'expired'
    where a.tenant_id = p_tenant and a.run_id = p_run and a.digest = p_digest
        and a.state in ('pending', 'approved') and a.expires_at <= p_now;
    with asked as (
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

-- spec: {mode, deadline_at, envelope (base64), limits {...}}
create or replace function tenantry.open_run_v1(
    p_tenant text, p_run text, p_workspace text, p_agent text, p_principal text, p_action_id text, p_spec jsonb,
    p_now timestamptz
) returns void
language sql volatile
as $$
    insert into tenantry.runs (
        tenant_id, run_id, workspace_id, agent_id, principal_id, action_id, mode, envelope, started_at,
        deadline_at
    ) values (
        p_tenant, p_run, p_workspace, p_agent, p_principal, p_action_id, p_spec ->> 'mode',
        decode(p_spec ->> 'envelope', 'base64'), p_now,
        (p_spec ->> 'deadline_at')::timestamptz
    );
    insert into tenantry.scopes (
        tenant_id, level, subject_id, attempt, lease_expires_at, requests_interval_us, requests_burst,
        model_inflight_limit, model_tokens_minute_limit, model_tokens_day_limit, cost_microusd_day_limit,
        tool_calls_day_limit, high_risk_day_limit, journal_bytes_limit
    )
    select
        p_tenant, 3, p_run, 1, (p_spec ->> 'deadline_at')::timestamptz,
        case when l.requests_per_minute is not null
            then 60000000 / greatest(least(l.requests_per_minute, 60000000), 1) end,
        case when l.requests_per_minute is not null
            then least(coalesce(l.requests_burst, l.requests_per_minute), least(l.requests_per_minute, 60000000) * 1000000)
            end,
        l.model_inflight, l.model_tokens_minute, l.model_tokens_day,
        l.cost_microusd_day, l.tool_calls_day, l.high_risk_day, l.journal_bytes
    from jsonb_to_record(p_spec -> 'limits') l(
        requests_per_minute bigint, requests_burst bigint, model_inflight bigint, model_tokens_minute bigint,
        model_tokens_day bigint, cost_microusd_day bigint, tool_calls_day bigint, high_risk_day bigint,
        journal_bytes bigint
    );
$$;

-- One row an item. codes: allowed | denied | suspended | throttled | budget_exceeded | approval_required |
-- recorded (settled before, `output` holds it) | open (begun before, not settled) | key_reuse | stale_policy |
-- stale_labels | lease_lost | unknown_scope | skipped (its scope was locked by somebody else).
--
-- Two ways to the same answer. When the batch's whole demand fits every scope and nothing stands against any item, one
-- statement says so and all are allowed. Otherwise `decide_v1` goes through the items in order.
create or replace function tenantry.begin_v1(
    p_instance text, p_items tenantry.begin_item_v1[], p_skipped tenantry.scope_key_v1[], p_skip_locked boolean
) returns table (ord integer, code text, log_position bigint, detail jsonb, prior_action_id text, output bytea)
language plpgsql
as $$
#variable_conflict use_column
declare
    c_journaled constant text[] := '{allowed,denied,suspended,throttled,budget_exceeded,approval_required}';
    v_now constant timestamptz := tenantry.now();
    v_now_us constant bigint := extract(epoch from v_now) * 1000000;
    v_minute constant bigint := v_now_us / 60000000 * 60;
    v_day constant bigint := v_now_us / 86400000000 * 86400;
    v_all_fit boolean; v_refused boolean := false;
    v_code text[]; v_level smallint[]; v_meter text[]; v_approval text[]; v_keep_content boolean[]; v_prior text[];
    v_detail jsonb[];
begin
    -- Does everything fit? The demand on each scope, held against the scope: one probe by whole key each. (Lateral
    -- subqueries with OFFSET are never flattened; a join's order would be the planner's, on statistics that may be old.)
    select bool_and(coalesce(
        s.mode = 'normal' and not s.killed and f.mode = 'normal' and w.is_plain
        and w.fleet_version_min = f.policy_version and w.fleet_version_max = f.policy_version
        and case w.level
            when 0 then w.policy_version_min = s.policy_version and w.policy_version_max = s.policy_version
            when 3 then w.attempt_min = s.attempt and w.attempt_max = s.attempt and s.lease_expires_at > v_now
                and w.labels_epoch_min = s.labels_epoch and w.labels_epoch_max = s.labels_epoch
                and (s.labels = '{}'
                    or (w.labels_min = w.labels_max and s.labels <@ string_to_array(w.labels_min, ',')))
            else true end
        and s.model_tokens_minute_window <= v_minute and s.day_window <= w.day
        and (s.overrun_tokens + s.overrun_microusd = 0 or w.model_tokens = 0)
        and coalesce(s.requests_interval_us * (s.requests_burst - w.items)
            >= greatest(s.requests_tat_us, v_now_us) - v_now_us, true)
        and coalesce(s.concurrent_runs_reserved + w.concurrent_runs <= s.concurrent_runs_limit, true)
        and coalesce(s.model_inflight_reserved + w.model_inflight <= s.model_inflight_limit, true)
        and coalesce(w.model_tokens + case when s.model_tokens_minute_window = v_minute
            then s.model_tokens_minute_used + s.model_tokens_minute_reserved else 0 end
            <= s.model_tokens_minute_limit, true)
        and coalesce(w.model_tokens + case when s.day_window = w.day
            then s.model_tokens_day_used + s.model_tokens_day_reserved else 0 end <= s.model_tokens_day_limit, true)
        and coalesce(w.cost_microusd + case when s.day_window = w.day
            then s.cost_microusd_day_used + s.cost_microusd_day_reserved else 0 end <= s.cost_microusd_day_limit, true)
        and coalesce(w.tool_calls + case when s.day_window = w.day
            then s.tool_calls_day_used + s.tool_calls_day_reserved else 0 end <= s.tool_calls_day_limit, true)
        and coalesce(w.high_risk + case when s.day_window = w.day
            then s.high_risk_day_used + s.high_risk_day_reserved else 0 end <= s.high_risk_day_limit, true)
        and coalesce(s.journal_bytes_used + s.journal_bytes_reserved + w.journal_bytes <= s.journal_bytes_limit, true),
        false))
    into v_all_fit
    from (
        select
            it.tenant_id, t.level::smallint as level, t.subject_id,
            case t.level when 3 then 0 else v_day end as day,
            count(*) as items,
            bool_and(coalesce(it.allow and it.approvers = '', false)) as is_plain,
            min(it.fleet_version) as fleet_version_min, max(it.fleet_version) as fleet_version_max,
            min(it.policy_version) as policy_version_min, max(it.policy_version) as policy_version_max,
            min(it.attempt) as attempt_min, max(it.attempt) as attempt_max,
            min(it.labels_epoch) as labels_epoch_min, max(it.labels_epoch) as labels_epoch_max,
            min(it.labels) as labels_min, max(it.labels) as labels_max,
            sum(it.concurrent_runs) as concurrent_runs, sum(it.model_inflight) as model_inflight,
            sum(it.model_tokens) as model_tokens, sum(it.cost_microusd) as cost_microusd,
            sum(it.tool_calls) as tool_calls, sum(it.high_risk) as high_risk, sum(it.journal_bytes) as journal_bytes
        from unnest(p_items) it
        cross join lateral (values (0, it.tenant_id), (1, it.workspace), (2, it.agent), (3, it.scope_run))
            t(level, subject_id)
        where t.subject_id is not null
        group by it.tenant_id, t.level, t.subject_id
    ) w
    cross join (select f.mode, f.policy_version from tenantry.fleet_scope f offset 0) f
    left join lateral (
        select s.* from tenantry.scopes s
        where s.tenant_id = w.tenant_id and s.level = w.level and s.subject_id = w.subject_id
        offset 0
    ) s on true;
    if v_all_fit and not p_skip_locked then
        -- INVARIANT 5: keys already begun, or twice in this batch, are for decide_v1 to tell apart.
        select count(it.key) = 0 or (
            count(it.key) = count(distinct (it.tenant_id, it.key)) filter (where it.key is not null)
            and not exists (
                select from unnest(p_items) k
                cross join lateral (
                    select from tenantry.journal j
                    where j.tenant_id = k.tenant_id and j.idempotency_key = k.key
                    offset 0
                ) earlier
                where k.key is not null
            )
        )
        into v_all_fit
        from unnest(p_items) it;
    end if;

    if v_all_fit and not p_skip_locked then
        v_code := array_fill('allowed'::text, array[cardinality(p_items)]);
        v_keep_content := array_fill(true, array[cardinality(p_items)]);
    else
        select d.code, d.level, d.meter, d.approval, d.keep_content, d.prior
        into v_code, v_level, v_meter, v_approval, v_keep_content, v_prior
        from tenantry.decide_v1(p_items, p_skipped) d;
        v_refused := exists (select from unnest(v_code) c(code) where c.code <> 'allowed');
    end if;

    -- Post every scope's share of what was allowed, rolling windows over (never back), in one update by primary key.
    update tenantry.scopes s
    set
        log_size = s.log_size + d.entries,
        refusals = s.refusals + d.refusals,
        requests_tat_us = case when d.allowed > 0 and s.requests_interval_us is not null
            then greatest(s.requests_tat_us, v_now_us) + d.allowed * s.requests_interval_us
            else s.requests_tat_us end,
        concurrent_runs_reserved = s.concurrent_runs_reserved + d.concurrent_runs,
        model_inflight_reserved = s.model_inflight_reserved + d.model_inflight,
        model_tokens_minute_window = greatest(s.model_tokens_minute_window, v_minute),
        model_tokens_minute_used =
            case when s.model_tokens_minute_window >= v_minute then s.model_tokens_minute_used else 0 end,
        model_tokens_minute_reserved = d.model_tokens
            + case when s.model_tokens_minute_window >= v_minute then s.model_tokens_minute_reserved else 0 end,
        day_window = greatest(s.day_window, d.day),
        model_tokens_day_used = case when s.day_window >= d.day then s.model_tokens_day_used else 0 end,
        model_tokens_day_reserved = d.model_tokens
            + case when s.day_window >= d.day then s.model_tokens_day_reserved else 0 end,
        cost_microusd_day_used = case when s.day_window >= d.day then s.cost_microusd_day_used else 0 end,
        cost_microusd_day_reserved = d.cost_microusd
            + case when s.day_window >= d.day then s.cost_microusd_day_reserved else 0 end,
        tool_calls_day_used = case when s.day_window >= d.day then s.tool_calls_day_used else 0 end,
        tool_calls_day_reserved = d.tool_calls
            + case when s.day_window >= d.day then s.tool_calls_day_reserved else 0 end,
        high_risk_day_used = case when s.day_window >= d.day then s.high_risk_day_used else 0 end,
        high_risk_day_reserved = d.high_risk
            + case when s.day_window >= d.day then s.high_risk_day_reserved else 0 end,
        journal_bytes_used = s.journal_bytes_used + d.refused_bytes,
        journal_bytes_reserved = s.journal_bytes_reserved + d.journal_bytes
    from (
        select
            it.tenant_id, t.level::smallint as level, t.subject_id,
            case t.level when 3 then 0 else v_day end as day,
            count(*) filter (where c.code = 'allowed') as allowed,
            count(*) filter (where t.level = 0) as entries,
            count(*) filter (where c.code <> 'allowed') as refusals,
            coalesce(sum(it.concurrent_runs) filter (where c.code = 'allowed'), 0)::bigint as concurrent_runs,
            coalesce(sum(it.model_inflight) filter (where c.code = 'allowed'), 0)::bigint as model_inflight,
            coalesce(sum(it.model_tokens) filter (where c.code = 'allowed'), 0)::bigint as model_tokens,
            coalesce(sum(it.cost_microusd) filter (where c.code = 'allowed'), 0)::bigint as cost_microusd,
            coalesce(sum(it.tool_calls) filter (where c.code = 'allowed'), 0)::bigint as tool_calls,
            coalesce(sum(it.high_risk) filter (where c.code = 'allowed'), 0)::bigint as high_risk,
            coalesce(sum(it.journal_bytes) filter (where c.code = 'allowed'), 0)::bigint as journal_bytes,
            coalesce(sum(octet_length(it.content)) filter (
                where c.code <> 'allowed' and c.keep_content and t.level = 0), 0)::bigint as refused_bytes
        from unnest(p_items) with ordinality it
        cross join lateral (
            select v_code[it.ordinality] as code, v_level[it.ordinality] as refused_level,
                v_keep_content[it.ordinality] as keep_content
        ) c
        cross join lateral (values (0, it.tenant_id), (1, it.workspace), (2, it.agent), (3, it.scope_run))
            t(level, subject_id)
        where t.subject_id is not null and c.code = any (c_journaled)
            and (c.code = 'allowed' or t.level = 0 or t.level = c.refused_level)
        group by it.tenant_id, t.level, t.subject_id
    ) d
    cross join lateral (
        select s.ctid as row_at from tenantry.scopes s
        where s.tenant_id = d.tenant_id and s.level = d.level and s.subject_id = d.subject_id
        offset 0
    ) place
    where s.ctid = place.row_at;

    -- Used up before anybody is asked again, so that nobody is told of one that is gone.
    if v_approval is not null then
        update tenantry.approvals a
        set state = 'used'
        from unnest(v_code, v_approval) with ordinality c(code, approval_id, place)
        where c.code = 'allowed' and a.tenant_id = (p_items[c.place]).tenant_id and a.approval_id = c.approval_id;
    end if;

    -- What a refused caller is told, read after the update: used and reserved as they stand now.
    if v_refused then
        select array_agg(case
            when c.code in ('suspended', 'throttled', 'budget_exceeded') then tenantry.refusal_detail_v1(
                c.code, it.tenant_id, c.level,
                case c.level when 0 then it.tenant_id when 1 then it.workspace when 2 then it.agent
                    when 3 then it.run end,
                c.meter, v_now_us,
                case c.meter
                    when 'model_tokens_minute' then it.model_tokens
                    when 'model_tokens_day' then it.model_tokens
                    when 'cost_microusd_day' then it.cost_microusd
                    when 'tool_calls_day' then it.tool_calls
                    when 'high_risk_day' then it.high_risk
                    when 'journal_bytes' then it.journal_bytes
                    else 1 end)
            when c.code = 'approval_required' then tenantry.ask_approval_v1(
                it.tenant_id, it.run, it.action_id, it.approval_digest, it.approvers, v_now)
            when c.code = 'stale_labels' then (
                select jsonb_build_object('labels', s.labels, 'labels_epoch', s.labels_epoch)
                from tenantry.scopes s
                where s.tenant_id = it.tenant_id and s.level = 3 and s.subject_id = it.run)
            end order by it.ordinality)
        into v_detail
        from unnest(p_items) with ordinality it
        cross join lateral (
            select v_code[it.ordinality] as code, v_level[it.ordinality] as level, v_meter[it.ordinality] as meter
        ) c;
    end if;

    -- INVARIANTS 9 and 10: the intent is durable before anything is performed, and its log position with it. The tenant's
    -- log_size was raised above, so positions count back from it.
    return query
    with entry as (
        select it.*, v_code[it.ordinality] as code, v_detail[it.ordinality] as detail,
            v_keep_content[it.ordinality] as keep_content, s.log_size - count(*) over (partition by it.tenant_id)
            + row_number() over (partition by it.tenant_id order by it.ordinality) - 1 as log_position
        from unnest(p_items) with ordinality it
        cross join lateral (
            select s.log_size from tenantry.scopes s
            where s.tenant_id = it.tenant_id and s.level = 0 and s.subject_id = it.tenant_id
            offset 0
        ) s
        where v_code[it.ordinality] = any (c_journaled)
    ),
    written as (
        insert into tenantry.journal (
            tenant_id, action_id, idempotency_key, workspace_id, agent_id, run_id, principal_id, kind, action_name,
            risk, target_system, input_sha256, policy_version, reason, verdict, detail, log_position, state,
            instance_id, begun_at, expires_at, minute_window, day_window, concurrent_runs, model_inflight,
            model_tokens, cost_microusd, tool_calls, high_risk, journal_bytes, content, content_sha256
        )
        select
            e.tenant_id, e.action_id, case when e.code = 'allowed' then e.key end, e.workspace, e.agent, e.run,
            e.principal, e.kind, e.name, e.risk, e.system, e.input_sha256, e.policy_version, e.reason::jsonb, e.code,
            e.detail, e.log_position, case when e.code = 'allowed' then 'begun' else 'refused' end, p_instance, v_now,
            v_now + e.timeout_ms * interval '1 millisecond', v_minute, v_day, e.concurrent_runs, e.model_inflight,
            e.model_tokens, e.cost_microusd, e.tool_calls, e.high_risk, e.journal_bytes,
            case when e.keep_content then e.content end, e.content_sha256
        from entry e
    ),
    leaves as (
        insert into tenantry.log_leaves (tenant_id, position, action_id, phase, leaf)
        select e.tenant_id, e.log_position, e.action_id, 'begin',
            tenantry.leaf_v1(e.tenant_id, e.log_position, e.action_id, 'begin', e.code, e.content_sha256)
        from entry e
    )
    select e.ordinality::integer, e.code, e.log_position, e.detail, null::text, null::bytea from entry e;

    if v_refused then
        -- What is told and not journaled; a recorded outcome comes back with it.
        return query
        select it.place::integer, it.code, null::bigint, coalesce(to_jsonb(p) - 'output', it.detail),
            case when it.code in ('recorded', 'open', 'key_reuse') then it.prior end, p.output
        from (
            select c.*, (p_items[c.place]).tenant_id
            from unnest(v_code, v_detail, v_prior) with ordinality c(code, detail, prior, place)
        ) it
        left join lateral (
            select j.state, j.status, j.kind, j.risk, j.used_tokens, j.used_microusd, j.output
            from tenantry.journal j
            where j.tenant_id = it.tenant_id and j.action_id = it.prior and it.code in ('recorded', 'open')
            offset 0
        ) p on true
        where it.code <> all (c_journaled);
    end if;
    -- A run that was allowed to start: its row, and its own scope with a live lease.
    if exists (select from unnest(p_items) it where it.run_spec is not null) then
        perform tenantry.open_run_v1(
            it.tenant_id, it.run, it.workspace, it.agent, it.principal, it.action_id, it.run_spec::jsonb, v_now)
        from unnest(p_items) with ordinality it
        where it.run_spec is not null and v_code[it.ordinality] = 'allowed';
    end if;
end
$$;
