-- What storage asks a server before it trusts it.

-- name: facts :one
-- No table of ours.
select
    current_setting('server_version_num')::integer as version,
    current_setting('tenantry.probe', true) as probe,
    current_setting('fsync') = 'on' as fsync
