-- What the jobs look for. Across tenants, as tenantry_platform with a reason; each row is then settled in its own
-- tenant's scope.

-- name: list_begun :many
-- What one process began and did not settle, oldest first. A run's own action is open as long as the run is, whoever began
-- it: runs expire by their deadline. $3: how long ago at least. Cheap: BRIN over begun_at from the process's oldest open action on.
select
    j.tenant_id, j.action_id, j.workspace_id, j.agent_id, j.run_id, j.kind, j.risk, j.model_tokens, j.cost_microusd,
    j.journal_bytes, octet_length(j.content)::bigint as content_bytes,
    exists (
        select from tenantry.scopes s where s.tenant_id = j.tenant_id and s.level = 3 and s.subject_id = j.run_id
    ) as has_run_scope
from tenantry.journal j
where j.begun_at >= $2 and j.begun_at <= tenantry.now() - $3::interval and j.instance_id = $1 and j.state = 'begun'
    and j.kind <> 'run'
order by j.begun_at
limit $4

-- name: list_orphans :many
-- The same of processes that nobody knows any more: begun between $1 and $2 ago. Cheap: BRIN over that time.
select j.instance_id, min(j.begun_at) as oldest_open_at
from tenantry.journal j
where j.begun_at between tenantry.now() - $1::interval and tenantry.now() - $2::interval and j.state = 'begun'
    and j.kind <> 'run' and not exists (select from tenantry.instances i where i.instance_id = j.instance_id)
group by j.instance_id
limit 100

-- name: list_expired_runs :many
-- Runs past their deadline that nobody ended. Cheap: the partial index over running runs by deadline.
select r.tenant_id::text as tenant_id, r.run_id
from tenantry.runs r
where r.state = 'running' and r.deadline_at < tenantry.now()
order by r.deadline_at
limit $1
