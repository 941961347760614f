-- Switches' history and the processes that follow it. Read and written by tenantry_control on reserved connections.

-- name: renew :many
-- One round trip, every 500 ms a process: the lease, and each switch that is not acknowledged. Cheap: two primary keys
-- and one row of the clock. It need not be durable: a lease that a crash of the server forgets is renewed, and who waits
-- for leases to lapse grants them longer than the server may forget. $7: tell those who wait that $6 is acknowledged.
select
    r.seen_seq, r.switch_seq, r.tenant_id, r.level, r.subject_id, r.verb, r.mode, s.switch_id,
    extract(epoch from s.mode_expires_at - tenantry.now())::double precision as expires_in_s,
    set_config('synchronous_commit', 'off', true) as durable,
    case when $7::boolean then pg_notify('tenantry_ack', $1::text || ':' || $6::bigint) end as told
from tenantry.renew_instance_v1(
    $1::text, $2::text, $3::text, $4::interval, tenantry.now() - $5::interval, $6::bigint
) r
left join tenantry.switches s on s.switch_seq = r.switch_seq

-- name: load :many
-- At the start of a process: what stands, and the number up to which it was read. The last word on each scope, for kills
-- and for modes apart; what happened to runs that are over is left out. A scan of the history, once.
select
    c.switch_seq as seen_seq, l.switch_seq, l.switch_id, l.tenant_id::text as tenant_id, l.level, l.subject_id, l.verb,
    l.mode, extract(epoch from l.mode_expires_at - tenantry.now())::double precision as expires_in_s
from tenantry.switch_clock c
left join lateral (
    select distinct on (s.tenant_id, s.level, s.subject_id, s.level >= 0 and s.verb = 'mode') s.*
    from tenantry.switches s
    where s.switch_seq <= c.switch_seq and s.verb in ('kill', 'revive', 'mode')
        and (s.level < 3 or s.requested_at > tenantry.now() - interval '25 hours')
    order by s.tenant_id, s.level, s.subject_id, s.level >= 0 and s.verb = 'mode', s.switch_seq desc
) l on l.verb = 'kill' or l.mode = 'suspended'
order by l.switch_seq

-- name: remove_instance :exec
-- Cheap: the primary key.
delete from tenantry.instances
where instance_id = $1

-- name: list_instances :many
-- Cheap: one row a process. A lease is over one second after it says so: the server may have forgotten one renewal in a
-- crash, and no process acts that long on a forgotten one.
select
    i.instance_id, i.role, i.address, i.started_at, i.lease_expires_at, i.oldest_open_at, i.acked_switch_seq,
    i.lease_expires_at + interval '1 second' <= n.now as lapsed, n.now
from tenantry.instances i
cross join (select tenantry.now() as now) n
order by i.instance_id
limit 1000
