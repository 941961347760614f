-- Switching, as one statement each: see gate/scopes.sql. As tenantry_control, on a reserved connection.

-- name: switch_scope :one
-- Cheap: primary keys of the scope, the tenant's row and the clock; three inserts.
select w.switch_seq, w.epoch, w.requested_at
from tenantry.switch_scope_v1(
    $1, $2::smallint, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14::jsonb, $15, $16, $17
) w

-- name: switch_fleet :one
-- Cheap: one row each; every gate waits for it, and it for every gate.
select w.switch_seq, w.epoch, w.requested_at
from tenantry.switch_v1(null, -1::smallint, 'fleet', $1, $2, null, $3, $4, $5) w

-- name: workspace_of :one
-- In a tenant's scope: the workspace of an agent (level 2) or a run (level 3). Cheap: one primary key.
select r.workspace_id
from tenantry.runs r
where $2::smallint = 3 and r.tenant_id = $1 and r.run_id = $3
union all
select a.spec ->> 'workspace'
from tenantry.tenant_specs a
where $2::smallint = 2 and a.tenant_id = $1 and a.kind = 'agent' and a.name = $3
limit 1
