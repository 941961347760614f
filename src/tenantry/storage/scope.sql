-- What opens, binds and ends every transaction of a scope.

-- name: begin :exec
begin isolation level read committed

-- name: commit :exec
commit

-- name: rollback :exec
rollback

-- name: bind_tenant :one
-- No table: the setting lives until this transaction ends, and reads '' after it.
select set_config('app.tenants', ($1::text[])::text, true) as bound

-- name: bind_reason :one
-- No table, likewise.
select set_config('app.platform_reason', $1, true) as bound
