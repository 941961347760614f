-- Runs as people read them. In a tenant's scope; `runs` is written by the gate.

-- name: list_runs :many
-- Newest first, one page: ids sort by their time. Cheap: the primary key backwards; a filter looks through the tenant's
-- other runs.
select
    r.run_id, r.workspace_id, r.agent_id, r.principal_id, r.attempt, r.state, r.mode, r.started_at, r.deadline_at,
    r.ended_at
from tenantry.runs r
where r.tenant_id = $1 and ($2::text = '' or r.run_id < $2) and ($3::text is null or r.workspace_id = $3)
    and ($4::text is null or r.agent_id = $4) and ($5::text is null or r.state = $5)
order by r.run_id desc
limit $6

-- name: find_run :one
-- Cheap: primary keys of the run and its scope.
select
    r.run_id, r.workspace_id, r.agent_id, r.principal_id, r.attempt, r.state, r.mode, r.started_at, r.deadline_at,
    r.ended_at, r.action_id, r.result, s.labels, s.killed, s.mode as scope_mode
from tenantry.runs r
left join tenantry.scopes s on s.tenant_id = r.tenant_id and s.level = 3 and s.subject_id = r.run_id
where r.tenant_id = $1 and r.run_id = $2 and ($3::text is null or r.workspace_id = $3)

-- name: list_incidents :many
-- Newest first, one page. Cheap: the tenant's incidents, which are few.
select i.incident_id, i.kind, i.detail::text as detail, i.opened_at, i.closed_at
from tenantry.incidents i
where i.tenant_id = $1 and ($2::text = '' or i.incident_id < $2)
order by i.incident_id desc
limit $3
