-- The data keys of tenants, wrapped by the root key. Run inside a transaction that is bound to the tenant.

-- name: load_keys :many
-- Cheap: the primary key's prefix; a tenant has one row a rotation.
select key_version, wrapped_key
from tenantry.tenant_keys
where tenant_id = $1
order by key_version

-- name: add_key :exec
-- Cheap: one insert. Of two at once the first stays, and both read it back.
insert into tenantry.tenant_keys (tenant_id, key_version, wrapped_key)
values ($1, $2, $3)
on conflict (tenant_id, key_version) do nothing
