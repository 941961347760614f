-- Reads for a run's end; what changes runs is in begin.sql and settle.sql.

-- name: find_run :one
-- Primary keys of both tables.
select r.action_id, r.workspace_id, r.agent_id, r.state, octet_length(j.content)::bigint as content_bytes
from tenantry.runs r
join tenantry.journal j on j.tenant_id = r.tenant_id and j.action_id = r.action_id
where r.tenant_id = $1 and r.run_id = $2
