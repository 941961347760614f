-- The leader's lease. As tenantry_control, on a connection of the leader's own.

-- name: hold :one
-- Whether this session holds the lock, or takes it now. Cheap: the lock table, which is small.
select coalesce((
    select true
    from pg_locks l
    where l.locktype = 'advisory' and l.pid = pg_backend_pid() and l.granted
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
        and (l.classid::bigint << 32 | l.objid::bigint) = 7238151624011002
    limit 1
), pg_try_advisory_lock(7238151624011002)) as held
