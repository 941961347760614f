-- Scope rows as control makes them, through gate/scopes.sql; and the history of what was in force.

-- name: put_scope :one
-- Cheap: one row by primary key.
select tenantry.put_scope_v1($1, $2::smallint, $3, $4::jsonb) is null as done

-- name: lock_tenant :one
-- The tenant's row, before anything else of it is changed. Cheap: the primary key.
select s.policy_version, s.frozen, s.mode, s.killed
from tenantry.scopes s
where s.tenant_id = $1 and s.level = 0 and s.subject_id = $1
for no key update of s

-- name: find_tenant_scope :one
-- Cheap: the primary key, and the fleet's one row.
select s.policy_version, f.policy_version as fleet_version, s.frozen, s.killed, s.mode, s.mode_expires_at
from tenantry.scopes s
cross join tenantry.fleet_scope f
where s.tenant_id = $1 and s.level = 0 and s.subject_id = $1

-- name: bump_policy_version :one
-- Cheap: the tenant's row.
select tenantry.bump_policy_version_v1($1) as policy_version

-- name: bump_fleet_version :one
-- Cheap: one row, for which every gate's next batch waits.
select tenantry.bump_fleet_version_v1() as policy_version

-- name: add_policy_version :exec
-- Cheap: one insert.
insert into tenantry.policy_versions (tenant_id, policy_version, layers, author, reason)
values ($1, $2, $3::jsonb, $4, $5)

-- name: list_policy_versions :many
-- Newest first, one page. Cheap: the primary key backwards.
select v.policy_version, v.author, v.reason, v.activated_at
from tenantry.policy_versions v
where v.tenant_id = $1 and ($2::bigint is null or v.policy_version < $2)
order by v.policy_version desc
limit $3

-- name: find_policy_version :one
-- Cheap: the primary key.
select v.policy_version, v.author, v.reason, v.activated_at, v.layers::text as layers
from tenantry.policy_versions v
where v.tenant_id = $1 and v.policy_version = $2

-- name: clear_overrun :one
-- On a reserved connection, bound. The tenant's scopes with an overrun, in order; its open incidents of that kind.
select c.scopes, c.incidents
from tenantry.clear_overrun_v1($1) c

-- name: write_admin :one
-- As journal/store.sql, for a transaction of control's own.
select tenantry.journal_admin_v1($1, $2, $3, $4, $5, $6::jsonb, $7, $8, $9) as log_position

-- name: list_workspace_runs :many
-- Whether one run is a workspace's. Cheap: the primary key.
select r.run_id
from tenantry.runs r
where r.tenant_id = $1 and r.workspace_id = $2 and r.run_id = $3
