-- Reads for a run's end; what changes runs is in begin.sql and settle.sql.

-- name: find_run :one
-- Primary keys of both tables.
select r.action_id, r.workspace_id, r.agent_id, r.state, octet_length(j.content)::bigint as content_bytes
from tenantry.runs r
join tenantry.journal j on j.tenant_id = r.tenant_id and j.action_id = r.action_id
where r.tenant_id = $1 and r.run_id = $2

-- name: find_started :one
-- The run that an action opened, while it lives. Primary keys of both tables.
select r.run_id, r.workspace_id, r.agent_id, r.principal_id, r.attempt, r.deadline_at
from tenantry.journal j
join tenantry.runs r on r.tenant_id = j.tenant_id and r.run_id = j.run_id
where j.tenant_id = $1 and j.action_id = $2 and r.state = 'running'
