-- What the benchmarks need besides the platform's own statements. The first and the last two as the superuser.

-- name: make_floor :script
-- The floor: one row of the size of a journal entry's content, with a key, durable.
create schema benchmark;
create table benchmark.floor (
    id bigint generated always as identity primary key,
    body bytea not null
);

-- name: insert_floor :exec
insert into benchmark.floor (body) values ($1)

-- name: put_scope :one
-- In a tenant's scope, as the registration of a tenant does it.
select tenantry.put_scope_v1($1, $2::smallint, $3, $4::jsonb) as put

-- name: set_gate_patience :script
-- Sixty-four connections queue for one row: the gate's short lock time-out would turn their wait into retries.
alter role tenantry_gate set lock_timeout = '4s';

-- name: reset_gate_patience :script
alter role tenantry_gate set lock_timeout = '20ms';

-- name: count_begun_while_killed :one
-- Exact, by the tenant's log: kill and revive alternate, so after an odd number of them the tenant is killed.
select count(*) as begun
from (
    select j.state, j.verdict,
        count(*) filter (where j.state = 'admin') over (order by j.log_position) as switches
    from tenantry.journal j
    where j.tenant_id = $1
) entries
where entries.state <> 'admin' and entries.verdict = 'allowed' and entries.switches % 2 = 1
