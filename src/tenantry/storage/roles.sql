-- The cluster's roles (DESIGN §5), made before the first migration and brought up to date at each start.
-- None is a superuser, none may bypass row security, none inherits another.

-- name: roles :script
do $$
declare
    role_name text;
begin
    foreach role_name in array array[
        'tenantry_owner', 'tenantry_gate', 'tenantry_app', 'tenantry_platform', 'tenantry_control'
    ] loop
        if not exists (select from pg_roles where rolname = role_name) then
            execute format(
                'create role %I login noinherit nosuperuser nocreatedb nocreaterole nobypassrls', role_name);
        end if;
        execute format('alter role %I set search_path = pg_catalog', role_name);
        execute format('alter role %I set timezone = ''UTC''', role_name);
    end loop;
end
$$;

-- The gate: plans are pinned, because one cached while the journal was empty stays a hash join over a scan.
alter role tenantry_gate set enable_seqscan = off;
alter role tenantry_gate set enable_hashjoin = off;
alter role tenantry_gate set enable_mergejoin = off;
alter role tenantry_gate set plan_cache_mode = force_generic_plan;
alter role tenantry_gate set jit = off;
alter role tenantry_gate set lock_timeout = '20ms';
alter role tenantry_gate set statement_timeout = '5s';
alter role tenantry_gate set idle_in_transaction_session_timeout = '2s';

alter role tenantry_app set lock_timeout = '2s';
alter role tenantry_app set statement_timeout = '10s';
alter role tenantry_app set idle_in_transaction_session_timeout = '10s';

alter role tenantry_platform set lock_timeout = '2s';
alter role tenantry_platform set statement_timeout = '30s';
alter role tenantry_platform set idle_in_transaction_session_timeout = '10s';

alter role tenantry_control set lock_timeout = '2s';
alter role tenantry_control set statement_timeout = '5s';
alter role tenantry_control set idle_in_transaction_session_timeout = '5s';

-- Known from PostgreSQL 17 on; before it the two time-outs above have to do.
do $$
begin
    if current_setting('server_version_num')::integer >= 170000 then
        alter role tenantry_gate set transaction_timeout = '10s';
        alter role tenantry_app set transaction_timeout = '30s';
        alter role tenantry_platform set transaction_timeout = '60s';
        alter role tenantry_control set transaction_timeout = '10s';
    end if;
end
$$;
