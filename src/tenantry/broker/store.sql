-- A tenant's secrets: `secrets` is written here only. Inside a tenant's scope.

-- name: lock_for_secret :one
-- Versions of a tenant's secrets are counted one writer at a time; the lock does not stop those who refer to the
-- tenant. Cheap: two primary keys.
select exists (
    select from tenantry.tenant_specs w
    where w.tenant_id = t.tenant_id and w.kind = 'workspace' and w.name = $2
) as workspace_stands
from tenantry.tenants t
where t.tenant_id = $1
for no key update of t

-- name: find_newest :one
-- Cheap: the primary key, backwards, one row.
select s.version, s.system, s.agent_classes, s.capability, s.sealed, s.revoked_at is not null as revoked
from tenantry.secrets s
where s.tenant_id = $1 and s.workspace_id = $2 and s.name = $3
order by s.version desc
limit 1

-- name: add_version :exec
-- Cheap: one insert.
insert into tenantry.secrets (tenant_id, workspace_id, name, version, system, agent_classes, capability, sealed)
values ($1, $2, $3, $4, $5, $6, $7, $8)

-- name: revoke :exec
-- The sealed value goes with it. Cheap: the primary key's prefix; $4 null: every version.
update tenantry.secrets s
set revoked_at = tenantry.now(), sealed = null
where s.tenant_id = $1 and s.workspace_id = $2 and s.name = $3 and ($4::integer is null or s.version = $4)
    and s.revoked_at is null

-- name: revoke_older :exec
-- Cheap: the primary key's prefix.
update tenantry.secrets s
set revoked_at = tenantry.now(), sealed = null
where s.tenant_id = $1 and s.workspace_id = $2 and s.name = $3 and s.version < $4 and s.revoked_at is null

-- name: list_versions :many
-- Cheap: the primary key in order, one page. No value is read.
select
    s.workspace_id, s.name::text as name, s.version, s.system, s.agent_classes, s.capability, s.created_at,
    s.revoked_at,
    not exists (
        select from tenantry.secrets n
        where n.tenant_id = s.tenant_id and n.workspace_id = s.workspace_id and n.name = s.name
            and n.version > s.version
    ) as newest
from tenantry.secrets s
where s.tenant_id = $1 and ($2::text is null or s.workspace_id = $2)
    and (s.workspace_id, s.name::text, s.version) > ($3::text, $4::text, $5::integer)
order by s.workspace_id, s.name::text, s.version
limit $6

-- name: find_provider_credential :one
-- The platform's own, in any tenant's scope. Cheap: the primary key.
select p.spec::text as document
from tenantry.platform_specs p
where p.kind = 'provider_credential' and p.name = $1
