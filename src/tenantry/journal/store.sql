-- A tenant's journal, read within its scope; actions are written by the gate.

-- name: write_admin :one
-- Cheap: the tenant's row by primary key, two inserts.
select tenantry.journal_admin_v1($1, $2, $3, $4, $5, $6::jsonb, $7, $8, $9) as log_position

-- name: list_entries :many
-- Newest first. Cheap: the primary key backwards, one page; ids sort by their time. $4: of one run, whose time $2 and $5
-- bound.
select
    j.action_id, j.workspace_id, j.agent_id, j.run_id, j.principal_id, j.kind, j.action_name, j.risk, j.target_system,
    j.policy_version, j.reason::text as reason, j.verdict, j.detail::text as detail, j.log_position, j.state, j.status,
    j.begun_at, j.settled_at, j.model_tokens, j.cost_microusd, j.used_tokens, j.used_microusd
from tenantry.journal j
where j.tenant_id = $1 and ($2::text = '' or j.action_id < $2)
    and ($3::text is null or j.workspace_id = $3) and ($4::text is null or j.run_id = $4)
    and j.action_id >= $5
order by j.action_id desc
limit $6

-- name: find_entry :one
-- Cheap: the primary key.
select
    j.action_id, j.workspace_id, j.agent_id, j.run_id, j.principal_id, j.kind, j.action_name, j.risk, j.target_system,
    j.policy_version, j.reason::text as reason, j.verdict, j.detail::text as detail, j.log_position, j.state, j.status,
    j.begun_at, j.settled_at, j.model_tokens, j.cost_microusd, j.used_tokens, j.used_microusd,
    j.content, j.output
from tenantry.journal j
where j.tenant_id = $1 and j.action_id = $2 and ($3::text is null or j.workspace_id = $3)
