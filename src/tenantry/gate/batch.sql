-- The two round trips as one call: what settled and what begins, of many tenants, in one transaction and one fsync.
-- Lock order (DESIGN §3): fleet (shared) < scope rows by (tenant, level, subject) < journal.

-- name: functions :script
-- Binds, locks, settles, begins. Settling comes first, so that what it frees can be used at once.
--
-- p_skip_locked false: waits for a row that somebody else holds up to `lock_timeout` and then raises 55P03, with
-- nothing done. true: leaves such rows, and the items that need them come back as 'skipped'.
create or replace function tenantry.batch_v1(
    p_instance text, p_skip_locked boolean, p_tenants text[],
    p_scope_tenant text[], p_scope_level smallint[], p_scope_subject text[],
    s_tenant text[], s_scope_0 integer[], s_scope_1 integer[], s_scope_2 integer[], s_scope_3 integer[],
    s_action_id text[], s_status text[], s_tokens bigint[], s_microusd bigint[], s_journal_bytes bigint[],
    s_labels text[], s_output bytea[], s_output_sha256 bytea[], s_run_state text[],
    b_tenant text[], b_scope_0 integer[], b_scope_1 integer[], b_scope_2 integer[], b_scope_3 integer[],
    b_action_id text[], b_key text[], b_workspace text[], b_agent text[], b_run text[], b_principal text[],
    b_kind text[], b_name text[], b_risk smallint[], b_system text[], b_input_sha256 bytea[],
    b_policy_version bigint[], b_fleet_version bigint[], b_attempt integer[], b_allow boolean[], b_reason text[],
    b_approvers text[], b_approval_digest bytea[], b_labels text[], b_labels_epoch bigint[],
    b_concurrent_runs bigint[], b_model_inflight bigint[], b_model_tokens bigint[], b_cost_microusd bigint[],
    b_tool_calls bigint[], b_high_risk bigint[], b_journal_bytes bigint[], b_timeout_ms bigint[], b_content bytea[],
    b_content_sha256 bytea[], b_run_spec text[]
) returns table (
    part text, ord integer, code text, log_position bigint, detail jsonb, prior_action_id text, output bytea
)
language plpgsql
as $$
#variable_conflict use_column
declare
    v_locked bigint[];
    v_skipped boolean[] := array_fill(false, array[cardinality(p_scope_tenant)]);
begin
    -- INVARIANT 2: bound before any row is touched; row security holds every statement below to these tenants.
    perform set_config('app.batch', jsonb_object(p_tenants, p_tenants)::text, true);
    perform from tenantry.fleet_scope for share;

    if p_skip_locked then
        select array_agg(held.place) into v_locked
        from (
            select w.place
            from unnest(p_scope_tenant, p_scope_level, p_scope_subject) with ordinality
                w(tenant_id, level, subject_id, place)
            join tenantry.scopes s using (tenant_id, level, subject_id)
            order by s.tenant_id, s.level, s.subject_id
            for no key update of s skip locked
        ) held;
        select array_agg(w.place <> all (coalesce(v_locked, '{}')) and exists (
                select from tenantry.scopes s
                where s.tenant_id = w.tenant_id and s.level = w.level and s.subject_id = w.subject_id
            ) order by w.place)
        into v_skipped
        from unnest(p_scope_tenant, p_scope_level, p_scope_subject) with ordinality
            w(tenant_id, level, subject_id, place);
    else
        perform
        from (
            select 1
            from unnest(p_scope_tenant, p_scope_level, p_scope_subject) w(tenant_id, level, subject_id)
            join tenantry.scopes s using (tenant_id, level, subject_id)
            order by s.tenant_id, s.level, s.subject_id
            for no key update of s
        ) held;
    end if;

    if cardinality(s_action_id) > 0 then
        return query
        select 'settle', r.ord, r.code, r.log_position, null::jsonb, null::text, null::bytea
        from tenantry.settle_v1(
            v_skipped, p_scope_tenant, p_scope_level, p_scope_subject, s_tenant, s_scope_0, s_scope_1, s_scope_2,
            s_scope_3, s_action_id, s_status, s_tokens, s_microusd, s_journal_bytes, s_labels, s_output,
            s_output_sha256, s_run_state) r;
    end if;

    if cardinality(b_action_id) > 0 then
        return query
        select 'begin', r.ord, r.code, r.log_position, r.detail, r.prior_action_id, r.output
        from tenantry.begin_v1(
            p_instance, v_skipped, p_scope_tenant, p_scope_level, p_scope_subject, b_tenant, b_scope_0, b_scope_1,
            b_scope_2, b_scope_3, b_action_id, b_key, b_workspace, b_agent, b_run, b_principal, b_kind, b_name, b_risk,
            b_system, b_input_sha256, b_policy_version, b_fleet_version, b_attempt, b_allow, b_reason, b_approvers,
            b_approval_digest, b_labels, b_labels_epoch, b_concurrent_runs, b_model_inflight, b_model_tokens,
            b_cost_microusd, b_tool_calls, b_high_risk, b_journal_bytes, b_timeout_ms, b_content, b_content_sha256,
            b_run_spec) r;
    end if;
end
$$;
