-- Meters as people see them. In a tenant's scope; `scopes` is written by the gate.

-- name: list_meters :many
-- One scope ($2 level, $3 subject) or, when $2 is null, the tenant, its workspaces and its agents. What a window that is
-- over had counted is shown as nothing. Cheap: the tenant's scope rows by the primary key, runs left out.
select
    s.level, s.subject_id, s.refusals, s.overrun_tokens, s.overrun_microusd,
    n.minute + 60 as minute_ends, n.day + 86400 as day_ends,
    60000000 / nullif(s.requests_interval_us, 0) as requests_per_minute, s.requests_burst,
    case when s.requests_burst is not null then
        least(greatest(
            (s.requests_tat_us - n.now_us + s.requests_interval_us - 1) / nullif(s.requests_interval_us, 0), 0
        ), s.requests_burst)
    end as requests_used,
    s.requests_tat_us / 1000000 as requests_empty_at,
    s.concurrent_runs_limit, s.concurrent_runs_reserved,
    s.model_inflight_limit, s.model_inflight_reserved,
    s.model_tokens_minute_limit,
    case when s.model_tokens_minute_window = n.minute then s.model_tokens_minute_used else 0 end as minute_used,
    case when s.model_tokens_minute_window = n.minute then s.model_tokens_minute_reserved else 0 end as minute_reserved,
    s.model_tokens_day_limit, s.cost_microusd_day_limit, s.tool_calls_day_limit, s.high_risk_day_limit,
    case when d.current then s.model_tokens_day_used else 0 end as model_tokens_day_used,
    case when d.current then s.model_tokens_day_reserved else 0 end as model_tokens_day_reserved,
    case when d.current then s.cost_microusd_day_used else 0 end as cost_microusd_day_used,
    case when d.current then s.cost_microusd_day_reserved else 0 end as cost_microusd_day_reserved,
    case when d.current then s.tool_calls_day_used else 0 end as tool_calls_day_used,
    case when d.current then s.tool_calls_day_reserved else 0 end as tool_calls_day_reserved,
    case when d.current then s.high_risk_day_used else 0 end as high_risk_day_used,
    case when d.current then s.high_risk_day_reserved else 0 end as high_risk_day_reserved,
    s.journal_bytes_limit, s.journal_bytes_used, s.journal_bytes_reserved
from tenantry.scopes s
cross join (
    select c.now_us, c.now_us / 60000000 * 60 as minute, c.now_us / 86400000000 * 86400 as day
    from (select (extract(epoch from tenantry.now()) * 1000000)::bigint as now_us) c
) n
cross join lateral (select s.day_window = case s.level when 3 then 0 else n.day end as current) d
where s.tenant_id = $1 and case when $2::smallint is null then s.level < 3 else s.level = $2 and s.subject_id = $3 end
order by s.level, s.subject_id
limit 1000
