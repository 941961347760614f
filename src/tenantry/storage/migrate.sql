-- What the migrator says to the server, as the superuser or the user of the URL, but for what is marked.

-- name: lock :one
-- No table. One migrator a database; a second one waits and then finds nothing to do. It ends with the session.
select pg_advisory_lock(7238151624011001) is null as locked

-- name: grants :script
-- Nobody but our roles may connect, and nobody but the owner may create; nothing lands in `public` or in temporary
-- tables. A user that is no superuser becomes the owner only on request, by SET ROLE.
do $$
begin
    execute format('revoke all on database %I from public', current_database());
    execute format('grant create on database %I to tenantry_owner', current_database());
    execute format(
        'grant connect on database %I to tenantry_gate, tenantry_app, tenantry_platform, tenantry_control',
        current_database());
    revoke all on schema public from public;
    if not (select rolsuper from pg_roles where rolname = current_user) then
        execute format('grant tenantry_owner to %I with inherit false, set true', current_user);
    end if;
end
$$;

-- name: set_secret :one
-- No table. Passes a role's name and its SCRAM verifier to `set_password` inside one transaction.
select set_config('tenantry.role', $1, true) as role_name, set_config('tenantry.verifier', $2, true) as verifier

-- name: set_password :script
do $$
begin
    execute format(
        'alter role %I password %L', current_setting('tenantry.role'), current_setting('tenantry.verifier'));
end
$$;

-- name: roles_too_strong :many
-- Cheap: a handful of roles.
select r.rolname as role_name
from pg_roles r
where r.rolname in ('tenantry_owner', 'tenantry_gate', 'tenantry_app', 'tenantry_platform', 'tenantry_control')
    and (
        r.rolsuper or r.rolbypassrls or r.rolcreaterole or r.rolcreatedb or r.rolreplication
        or exists (select from pg_auth_members m where m.member = r.oid)
    )
order by r.rolname

-- name: become_owner :exec
-- For the rest of the transaction, with no schema to find anything in by chance.
select set_config('role', 'tenantry_owner', true), set_config('search_path', 'pg_catalog', true)

-- name: prepare :script
-- As the owner. Functions are nobody's until granted, also those of later versions.
create schema if not exists tenantry_meta;
create table if not exists tenantry_meta.migrations (
    name text collate "C" primary key,
    sha256 bytea not null,
    applied_at timestamptz not null default clock_timestamp()
);
alter default privileges revoke execute on functions from public;

-- name: applied :many
-- As the owner. Cheap: a row a file.
select name, sha256
from tenantry_meta.migrations
order by name

-- name: record :exec
-- As the owner. Cheap: the primary key.
insert into tenantry_meta.migrations (name, sha256)
values ($1, $2)
on conflict (name) do update set sha256 = excluded.sha256, applied_at = clock_timestamp()
