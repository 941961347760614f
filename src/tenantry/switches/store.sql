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

-- name: confirm :exec
-- What came of a switch, once. Cheap: the primary key.
update tenantry.switches s
set confirmed_at = $2, acknowledgements = $3::jsonb
where s.switch_seq = $1 and s.confirmed_at is null

-- name: find_switch :one
-- Whether a switch whose answer was lost took effect. Cheap: the unique index.
select s.switch_seq, s.epoch, s.requested_at
from tenantry.switches s
where s.switch_id = $1

-- name: list_switches :many
-- In a tenant's scope (its own and the fleet's) or the platform's (all). Newest first, one page. Cheap: the primary key
-- backwards.
select
    s.switch_seq, s.switch_id, s.tenant_id::text as tenant_id, s.level, s.subject_id, s.verb, s.mode, s.mode_expires_at,
    s.requested_by, s.reason, s.requested_at, s.confirmed_at, s.acknowledgements::text as acknowledgements
from tenantry.switches s
where ($1::bigint is null or s.switch_seq < $1) and ($2::text is null or s.tenant_id = $2)
order by s.switch_seq desc
limit $3

-- name: holders :many
-- Who has switched a scope since it was last as before, and its epoch: whose word undoing it must not override. $4: verbs
-- that switch, $5: those that undo; a mode of 'normal' undoes too. Cheap: the tenant's switches, which people make.
select distinct h.requested_by, s.epoch
from tenantry.scopes s
left join tenantry.switches h
    on h.tenant_id = s.tenant_id and h.level = s.level and h.subject_id = s.subject_id and h.verb = any ($4::text[])
    and h.mode is distinct from 'normal' and (h.mode_expires_at <= tenantry.now()) is not true
    and h.switch_seq > coalesce((
        select max(u.switch_seq)
        from tenantry.switches u
        where u.tenant_id = s.tenant_id and u.level = s.level and u.subject_id = s.subject_id
            and (u.verb = any ($5::text[]) or u.verb = any ($4::text[]) and u.mode = 'normal')
    ), 0)
where s.tenant_id = $1 and s.level = $2 and s.subject_id = $3
limit 100

-- name: list_stopped :many
-- Scopes of a tenant that are not as usual, runs that are over left out. Cheap: the tenant's scope rows, in its scope.
select s.level, s.subject_id, s.killed, s.frozen, s.mode, s.mode_expires_at, s.switch_id, s.switched_by, s.switched_at,
    s.switch_reason
from tenantry.scopes s
where s.tenant_id = $1 and (s.killed or s.frozen or s.mode <> 'normal' and (s.mode_expires_at <= tenantry.now()) is not true)
    and (s.level < 3 or s.lease_expires_at > tenantry.now())
order by s.level, s.subject_id
limit $2

-- name: remove_lapsed :exec
-- A process that came back meanwhile stays. Cheap: the primary key.
delete from tenantry.instances i
where i.instance_id = $1 and i.lease_expires_at + interval '1 second' <= tenantry.now()

-- name: confirm_late :exec
-- Cheap: the last day of the history, which people make.
update tenantry.switches s
set confirmed_at = tenantry.now()
where s.confirmed_at is null and s.requested_at between tenantry.now() - interval '1 day'
        and tenantry.now() - interval '1 minute'
    and s.switch_seq <= coalesce((
        select min(i.acked_switch_seq)
        from tenantry.instances i
        where i.lease_expires_at + interval '1 second' > tenantry.now()
    ), s.switch_seq)
