-- The two round trips as one call: what settled and what begins, of many tenants, in one transaction and one fsync.
-- Lock order (DESIGN §3): fleet (shared) < scope rows by (tenant, level, subject) < journal.

-- name: batch :script
-- The scopes that items touch, each once. Inlined by the planner.
create or replace function tenantry.scopes_of_v1(s_items tenantry.settle_item_v1[], b_items tenantry.begin_item_v1[])
returns setof tenantry.scope_key_v1
language sql immutable parallel safe
as $$
    select distinct it.tenant_id, t.level::smallint, t.subject_id
    from (
        select b.tenant_id, b.workspace, b.agent, b.scope_run from unnest(b_items) b
        union all
        select s.tenant_id, s.workspace, s.agent, s.scope_run from unnest(s_items) s
    ) it
    cross join lateral (values (0, it.tenant_id), (1, it.workspace), (2, it.agent), (3, it.scope_run))
        t(level, subject_id)
    where t.subject_id is not null
$$;

-- Binds, locks, settles, begins. Settling comes first, so that what it frees can be used at once.
--
-- p_skip_locked false: waits for a row that somebody else holds up to `lock_timeout` and then raises 55P03, with
-- nothing done. true: leaves such rows, and the items that need them come back as 'skipped'.
create or replace function tenantry.batch_v1(
    p_instance text, p_skip_locked boolean, s_items tenantry.settle_item_v1[], b_items tenantry.begin_item_v1[]
) returns table (
    part text, ord integer, code text, log_position bigint, detail jsonb, prior_action_id text, output bytea
)
language plpgsql
as $$
#variable_conflict use_column
declare
    v_skipped tenantry.scope_key_v1[] := '{}';
    v_position bigint;
begin
    -- INVARIANT 2: bound before any row is touched; row security holds every statement below to these tenants.
    perform set_config('app.batch', (
        select jsonb_object_agg(it.tenant_id, true)::text
        from (select tenant_id from unnest(b_items) union all select tenant_id from unnest(s_items)) it
    ), true);
    perform from tenantry.fleet_scope for share;
    if cardinality(b_items) = 1 and cardinality(s_items) = 0 and not p_skip_locked then
        v_position := tenantry.begin_one_v1(p_instance, b_items[1]);
        if v_position is not null then
            return query select 'begin', 1, 'allowed', v_position, null::jsonb, null::text, null::bytea;
            return;
        end if;
    elsif cardinality(s_items) = 1 and cardinality(b_items) = 0 and not p_skip_locked
        and not (s_items[1]).overran and (s_items[1]).run_state is null
    then
        v_position := tenantry.settle_one_v1(s_items[1]);
        if v_position is not null then
            return query select 'settle', 1, 'settled', v_position, null::jsonb, null::text, null::bytea;
            return;
        end if;
    end if;

    if p_skip_locked then
        with held as materialized (
            select w.tenant_id, w.level, w.subject_id
            from (
                select * from tenantry.scopes_of_v1(s_items, b_items) order by tenant_id, level, subject_id
            ) w
            cross join lateral (
                select from tenantry.scopes s
                where s.tenant_id = w.tenant_id and s.level = w.level and s.subject_id = w.subject_id
                for no key update skip locked
            ) held
        )
        select coalesce(array_agg(row(w.tenant_id, w.level, w.subject_id)::tenantry.scope_key_v1), '{}')
        into v_skipped
        from tenantry.scopes_of_v1(s_items, b_items) w
        cross join lateral (
            select from tenantry.scopes s
            where s.tenant_id = w.tenant_id and s.level = w.level and s.subject_id = w.subject_id
            offset 0
        ) known
        where not exists (
            select from held h
            where h.tenant_id = w.tenant_id and h.level = w.level and h.subject_id = w.subject_id
        );
    else
        -- A subquery that locks is never flattened, so this is one probe by whole key a scope, in the order of the
        -- outer one, whatever the planner believes of the table's size. (A plan made while it was empty scanned it all.)
        perform
        from (
            select * from tenantry.scopes_of_v1(s_items, b_items) order by tenant_id, level, subject_id
        ) w
        cross join lateral (
            select from tenantry.scopes s
            where s.tenant_id = w.tenant_id and s.level = w.level and s.subject_id = w.subject_id
            for no key update
        ) held;
    end if;

    if cardinality(s_items) > 0 then
        return query
        select 'settle', r.ord,
            coalesce(r.code, case when exists (
                select from tenantry.journal j
                where j.tenant_id = (s_items[r.ord]).tenant_id and j.action_id = (s_items[r.ord]).action_id
            ) then 'already' else 'unknown' end),
            r.log_position, null::jsonb, null::text, null::bytea
        from tenantry.settle_v1(s_items, v_skipped) r;
        if exists (
            select from unnest(s_items) it where it.run_state is not null or it.overran
        ) then
            perform tenantry.settle_rest_v1(s_items);
        end if;
    end if;
    if cardinality(b_items) > 0 then
        return query
        select 'begin', r.ord, r.code, r.log_position, r.detail, r.prior_action_id, r.output
        from tenantry.begin_v1(p_instance, b_items, v_skipped, p_skip_locked) r;
    end if;
end
$$;
