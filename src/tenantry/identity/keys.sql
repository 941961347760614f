-- API keys: `api_keys` and `operator_keys` are written here only. Inside a scope.

-- name: authenticate :one
-- Finds a key in force, and notes its use at most once a minute. Cheap: the unique index on the hash.
with found as (
    select k.tenant_id, k.key_id, k.principal_id, k.role, k.workspace_id, k.expires_at, k.last_used_at
    from tenantry.api_keys k
    where k.tenant_id = $1 and k.key_sha256 = $2 and k.revoked_at is null
        and (k.expires_at is null or k.expires_at > tenantry.now())
),
used as (
    update tenantry.api_keys k
    set last_used_at = tenantry.now()
    from found f
    where k.tenant_id = f.tenant_id and k.key_id = f.key_id
        and (f.last_used_at is null or f.last_used_at <= tenantry.now() - interval '1 minute')
)
select f.key_id, f.principal_id, f.role, f.workspace_id, f.expires_at
from found f

-- name: room_for_key :one
-- Cheap: the tenant's keys, at most a few thousand, and one primary key.
select
    (select count(*) from tenantry.api_keys k where k.tenant_id = $1 and k.revoked_at is null) as in_force,
    $2::text is null or exists (
        select from tenantry.tenant_specs w
        where w.tenant_id = $1 and w.kind = 'workspace' and w.name = $2
    ) as workspace_stands

-- name: add_key :exec
-- Cheap: one insert.
insert into tenantry.api_keys (
    tenant_id, key_id, key_sha256, prefix, principal_id, role, workspace_id, expires_at
) values ($1, $2, $3, $4, $5, $6, $7, $8)

-- name: revoke_key :one
-- Cheap: the primary key. The first revocation's time stays.
update tenantry.api_keys k
set revoked_at = coalesce(k.revoked_at, tenantry.now())
where k.tenant_id = $1 and k.key_id = $2 and ($3::text is null or k.workspace_id = $3)
returning k.key_sha256

-- name: list_keys :many
-- Cheap: the primary key in order, one page. No hash is read.
select
    k.key_id, k.prefix, k.principal_id, k.role, k.workspace_id, k.created_at, k.expires_at, k.revoked_at,
    k.last_used_at
from tenantry.api_keys k
where k.tenant_id = $1 and ($2::text is null or k.workspace_id = $2) and k.key_id > $3
order by k.key_id
limit $4

-- name: find_operator_key :one
-- For the platform. Cheap: the unique index on the hash.
select o.key_id, o.principal_id, o.revoked_at is not null as revoked
from tenantry.operator_keys o
where o.key_sha256 = $1

-- name: add_operator_key :exec
-- Cheap: one insert.
insert into tenantry.operator_keys (key_id, key_sha256, principal_id, prefix)
values ($1, $2, $3, $4)

-- name: revoke_operator_key :one
-- Cheap: the primary key. The first revocation's time stays.
update tenantry.operator_keys o
set revoked_at = coalesce(o.revoked_at, tenantry.now())
where o.key_id = $1
returning o.key_sha256
