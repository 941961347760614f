-- Which shard holds a tenant, and which tenant a key belongs to; no content. It stands in the first shard.

-- name: add_tenant :exec
-- Cheap: one insert. Of two at once the first stays.
insert into tenantry.directory_tenants (tenant_id, shard_id)
values ($1, $2)
on conflict (tenant_id) do nothing

-- name: find_key :one
-- Cheap: the primary key.
select tenant_id
from tenantry.directory_keys
where key_sha256 = $1

-- name: find_shard :one
-- Cheap: the primary key.
select shard_id
from tenantry.directory_tenants
where tenant_id = $1

-- name: add_key :exec
-- Cheap: one insert. A hash belongs to one tenant for ever.
insert into tenantry.directory_keys (key_sha256, tenant_id)
values ($1, $2)

-- name: remove_key :exec
-- Cheap: the primary key; row security keeps it to the bound tenant's keys.
delete from tenantry.directory_keys
where key_sha256 = $1

-- name: find_operator :one
-- Cheap: the unique index on the hash. Only a key that is in force.
select o.key_id, o.principal_id, o.expires_at
from tenantry.operator_keys o
where o.key_sha256 = $1 and o.revoked_at is null and (o.expires_at is null or o.expires_at > tenantry.now())
