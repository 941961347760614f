-- What is registered: `tenants`, `tenant_specs` and `platform_specs` are written here only. Inside a scope.

-- name: load_facts :many
-- One statement, so one snapshot: versions and specs agree. Cheap: primary keys and their prefixes; the platform's
-- specs are a few pages that every tenant reads.
select 'tenant' as kind, t.quota_class::text as name, json_build_object(
    'policy_version', s.policy_version,
    'fleet_version', f.policy_version,
    'base', t.spec
)::text as document
from tenantry.tenants t
join tenantry.scopes s on s.tenant_id = t.tenant_id and s.level = 0 and s.subject_id = t.tenant_id::text
cross join tenantry.fleet_scope f
where t.tenant_id = $1
union all
select r.kind, r.name::text, r.spec::text
from tenantry.tenant_specs r
where r.tenant_id = $1
union all
select p.kind, p.name::text, p.spec::text
from tenantry.platform_specs p
where
    p.kind in ('guardrail', 'provider', 'model')
    or p.kind = 'quota_class' and p.name = (select t.quota_class from tenantry.tenants t where t.tenant_id = $1)

-- name: find_tenant :one
-- Cheap: the primary key.
select t.display_name, t.quota_class::text as quota_class, t.created_at, t.spec::text as document
from tenantry.tenants t
where t.tenant_id = $1

-- name: put_tenant :exec
-- Cheap: one row; writes nothing when nothing changed.
insert into tenantry.tenants as t (tenant_id, display_name, quota_class, spec)
values ($1, $2, $3, $4::jsonb)
on conflict (tenant_id) do update
set display_name = excluded.display_name, quota_class = excluded.quota_class, spec = excluded.spec
where (t.display_name, t.quota_class, t.spec)
    is distinct from (excluded.display_name, excluded.quota_class, excluded.spec)

-- name: list_tenants :many
-- For the platform. Cheap: the primary key in order, one page.
select t.tenant_id::text as tenant_id, t.display_name, t.quota_class::text as quota_class, t.created_at
from tenantry.tenants t
where t.tenant_id > $1
order by t.tenant_id
limit $2

-- name: list_specs :many
-- Cheap: the primary key's prefix.
select r.name::text as name, r.spec::text as document
from tenantry.tenant_specs r
where r.tenant_id = $1 and r.kind = $2
order by r.name

-- name: put_specs :exec
-- Cheap: one look-up by primary key a spec; writes only what changed.
insert into tenantry.tenant_specs as r (tenant_id, kind, name, spec)
select $1, $2, d.name, d.document::jsonb
from unnest($3::text[], $4::text[]) d(name, document)
on conflict (tenant_id, kind, name) do update
set spec = excluded.spec, updated_at = tenantry.now()
where r.spec is distinct from excluded.spec

-- name: delete_spec :exec
-- Cheap: the primary key.
delete from tenantry.tenant_specs r
where r.tenant_id = $1 and r.kind = $2 and r.name = $3

-- name: delete_other_specs :exec
-- Cheap: the primary key's prefix.
delete from tenantry.tenant_specs r
where r.tenant_id = $1 and r.kind = $2 and r.name <> all ($3::text[])

-- name: list_platform_specs :many
-- Cheap: the primary key's prefix.
select p.name::text as name, p.spec::text as document
from tenantry.platform_specs p
where p.kind = $1
order by p.name

-- name: put_platform_specs :exec
-- Cheap: one look-up by primary key a spec; writes only what changed.
insert into tenantry.platform_specs as p (kind, name, spec)
select $1, d.name, d.document::jsonb
from unnest($2::text[], $3::text[]) d(name, document)
on conflict (kind, name) do update
set spec = excluded.spec, updated_at = tenantry.now()
where p.spec is distinct from excluded.spec

-- name: delete_other_platform_specs :exec
-- Cheap: the primary key's prefix.
delete from tenantry.platform_specs p
where p.kind = $1 and p.name <> all ($2::text[])
