-- A clock that differs from the machine's, for test databases: leases, windows and a simulated day can be tested.

-- name: set_offset :one
-- No table. Passes the interval to `replace_now` inside one transaction.
select set_config('tenantry.offset', ($1::interval)::text, true) as offset_by

-- name: replace_now :script
-- As the owner. The planner inlines the function, and plans that did so are made anew.
do $$
begin
    execute format(
        'create or replace function tenantry.now() returns timestamptz language sql stable parallel safe '
        'return clock_timestamp() + interval %L',
        current_setting('tenantry.offset'));
end
$$;
