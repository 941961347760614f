-- Row security: forced on every table that holds a tenant's rows, and the least grants that work.
-- A policy asks one stable function that raises when nothing is bound (0001), so an unbound read is an error and
-- not an empty answer. The sub-select makes it an InitPlan: evaluated once a statement.


alter table tenantry.tenants enable row level security;
alter table tenantry.tenants force row level security;
create policy bound on tenantry.tenants to tenantry_app, tenantry_control
    using (tenant_id = (select tenantry.bound_tenant()))
    with check (tenant_id = (select tenantry.bound_tenant()));
create policy batch on tenantry.tenants to tenantry_gate
    using ((select tenantry.bound_batch()) ? tenant_id)
    with check ((select tenantry.bound_batch()) ? tenant_id);
create policy across on tenantry.tenants for select to tenantry_platform
    using ((select tenantry.platform_reason()) is not null);
grant select, insert, update on tenantry.tenants to tenantry_app;
grant select on tenantry.tenants to tenantry_control;
grant select on tenantry.tenants to tenantry_platform;

alter table tenantry.tenant_keys enable row level security;
alter table tenantry.tenant_keys force row level security;
create policy bound on tenantry.tenant_keys to tenantry_app, tenantry_control
    using (tenant_id = (select tenantry.bound_tenant()))
    with check (tenant_id = (select tenantry.bound_tenant()));
create policy batch on tenantry.tenant_keys to tenantry_gate
    using ((select tenantry.bound_batch()) ? tenant_id)
    with check ((select tenantry.bound_batch()) ? tenant_id);
grant select, insert on tenantry.tenant_keys to tenantry_app;
grant select on tenantry.tenant_keys to tenantry_gate;
grant select on tenantry.tenant_keys to tenantry_control;

alter table tenantry.tenant_specs enable row level security;
alter table tenantry.tenant_specs force row level security;
create policy bound on tenantry.tenant_specs to tenantry_app, tenantry_control
    using (tenant_id = (select tenantry.bound_tenant()))
    with check (tenant_id = (select tenantry.bound_tenant()));
create policy batch on tenantry.tenant_specs to tenantry_gate
    using ((select tenantry.bound_batch()) ? tenant_id)
    with check ((select tenantry.bound_batch()) ? tenant_id);
create policy across on tenantry.tenant_specs for select to tenantry_platform
    using ((select tenantry.platform_reason()) is not null);
grant select, insert, update, delete on tenantry.tenant_specs to tenantry_app;
grant select on tenantry.tenant_specs to tenantry_control;
grant select on tenantry.tenant_specs to tenantry_platform;

alter table tenantry.policy_versions enable row level security;
alter table tenantry.policy_versions force row level security;
create policy bound on tenantry.policy_versions to tenantry_app, tenantry_control
    using (tenant_id = (select tenantry.bound_tenant()))
    with check (tenant_id = (select tenantry.bound_tenant()));
create policy batch on tenantry.policy_versions to tenantry_gate
    using ((select tenantry.bound_batch()) ? tenant_id)
    with check ((select tenantry.bound_batch()) ? tenant_id);
create policy across on tenantry.policy_versions for select to tenantry_platform
    using ((select tenantry.platform_reason()) is not null);
grant select, insert on tenantry.policy_versions to tenantry_app;
grant select on tenantry.policy_versions to tenantry_control;
grant select on tenantry.policy_versions to tenantry_platform;

alter table tenantry.api_keys enable row level security;
alter table tenantry.api_keys force row level security;
create policy bound on tenantry.api_keys to tenantry_app, tenantry_control
    using (tenant_id = (select tenantry.bound_tenant()))
    with check (tenant_id = (select tenantry.bound_tenant()));
create policy batch on tenantry.api_keys to tenantry_gate
    using ((select tenantry.bound_batch()) ? tenant_id)
    with check ((select tenantry.bound_batch()) ? tenant_id);
create policy across on tenantry.api_keys for select to tenantry_platform
    using ((select tenantry.platform_reason()) is not null);
grant select, insert, update on tenantry.api_keys to tenantry_app;
grant select on tenantry.api_keys to tenantry_control;
grant select on tenantry.api_keys to tenantry_platform;

alter table tenantry.secrets enable row level security;
alter table tenantry.secrets force row level security;
create policy bound on tenantry.secrets to tenantry_app, tenantry_control
    using (tenant_id = (select tenantry.bound_tenant()))
    with check (tenant_id = (select tenantry.bound_tenant()));
create policy batch on tenantry.secrets to tenantry_gate
    using ((select tenantry.bound_batch()) ? tenant_id)
    with check ((select tenantry.bound_batch()) ? tenant_id);
grant select, insert, update on tenantry.secrets to tenantry_app;
grant select, update on tenantry.secrets to tenantry_control;

alter table tenantry.scopes enable row level security;
alter table tenantry.scopes force row level security;
create policy bound on tenantry.scopes to tenantry_app, tenantry_control
    using (tenant_id = (select tenantry.bound_tenant()))
    with check (tenant_id = (select tenantry.bound_tenant()));
create policy batch on tenantry.scopes to tenantry_gate
    using ((select tenantry.bound_batch()) ? tenant_id)
    with check ((select tenantry.bound_batch()) ? tenant_id);
create policy across on tenantry.scopes for select to tenantry_platform
    using ((select tenantry.platform_reason()) is not null);
grant select, insert, update on tenantry.scopes to tenantry_app;
grant select, insert, update on tenantry.scopes to tenantry_gate;
grant select, insert, update on tenantry.scopes to tenantry_control;
grant select on tenantry.scopes to tenantry_platform;

alter table tenantry.runs enable row level security;
alter table tenantry.runs force row level security;
create policy bound on tenantry.runs to tenantry_app, tenantry_control
    using (tenant_id = (select tenantry.bound_tenant()))
    with check (tenant_id = (select tenantry.bound_tenant()));
create policy batch on tenantry.runs to tenantry_gate
    using ((select tenantry.bound_batch()) ? tenant_id)
    with check ((select tenantry.bound_batch()) ? tenant_id);
create policy across on tenantry.runs for select to tenantry_platform
    using ((select tenantry.platform_reason()) is not null);
grant select on tenantry.runs to tenantry_app;
grant select, insert, update on tenantry.runs to tenantry_gate;
grant select, update on tenantry.runs to tenantry_control;
grant select on tenantry.runs to tenantry_platform;

alter table tenantry.journal enable row level security;
alter table tenantry.journal force row level security;
create policy bound on tenantry.journal to tenantry_app, tenantry_control
    using (tenant_id = (select tenantry.bound_tenant()))
    with check (tenant_id = (select tenantry.bound_tenant()));
create policy batch on tenantry.journal to tenantry_gate
    using ((select tenantry.bound_batch()) ? tenant_id)
    with check ((select tenantry.bound_batch()) ? tenant_id);
create policy across on tenantry.journal for select to tenantry_platform
    using ((select tenantry.platform_reason()) is not null);
grant select, insert on tenantry.journal to tenantry_app;
grant select, insert, update on tenantry.journal to tenantry_gate;
grant select, insert on tenantry.journal to tenantry_control;
grant select on tenantry.journal to tenantry_platform;

alter table tenantry.log_leaves enable row level security;
alter table tenantry.log_leaves force row level security;
create policy bound on tenantry.log_leaves to tenantry_app, tenantry_control
    using (tenant_id = (select tenantry.bound_tenant()))
    with check (tenant_id = (select tenantry.bound_tenant()));
create policy batch on tenantry.log_leaves to tenantry_gate
    using ((select tenantry.bound_batch()) ? tenant_id)
    with check ((select tenantry.bound_batch()) ? tenant_id);
create policy across on tenantry.log_leaves for select to tenantry_platform
    using ((select tenantry.platform_reason()) is not null);
grant select, insert on tenantry.log_leaves to tenantry_app;
grant select, insert on tenantry.log_leaves to tenantry_gate;
grant select, insert on tenantry.log_leaves to tenantry_control;
grant select on tenantry.log_leaves to tenantry_platform;

alter table tenantry.approvals enable row level security;
alter table tenantry.approvals force row level security;
create policy bound on tenantry.approvals to tenantry_app, tenantry_control
    using (tenant_id = (select tenantry.bound_tenant()))
    with check (tenant_id = (select tenantry.bound_tenant()));
create policy batch on tenantry.approvals to tenantry_gate
    using ((select tenantry.bound_batch()) ? tenant_id)
    with check ((select tenantry.bound_batch()) ? tenant_id);
create policy across on tenantry.approvals for select to tenantry_platform
    using ((select tenantry.platform_reason()) is not null);
grant select on tenantry.approvals to tenantry_app;
grant select, insert, update on tenantry.approvals to tenantry_gate;
grant select, update on tenantry.approvals to tenantry_control;
grant select on tenantry.approvals to tenantry_platform;

alter table tenantry.incidents enable row level security;
alter table tenantry.incidents force row level security;
create policy bound on tenantry.incidents to tenantry_app, tenantry_control
    using (tenant_id = (select tenantry.bound_tenant()))
    with check (tenant_id = (select tenantry.bound_tenant()));
create policy batch on tenantry.incidents to tenantry_gate
    using ((select tenantry.bound_batch()) ? tenant_id)
    with check ((select tenantry.bound_batch()) ? tenant_id);
create policy across on tenantry.incidents for select to tenantry_platform
    using ((select tenantry.platform_reason()) is not null);
grant select on tenantry.incidents to tenantry_app;
grant select, insert on tenantry.incidents to tenantry_gate;
grant select, insert, update on tenantry.incidents to tenantry_control;
grant select on tenantry.incidents to tenantry_platform;

-- switches: a fleet switch has no tenant; every bound role may see those, and its own. Control reads all of them,
-- unbound: each process follows every switch.
alter table tenantry.switches enable row level security;
alter table tenantry.switches force row level security;
create policy bound on tenantry.switches for select to tenantry_app
    using (coalesce(tenant_id, (select tenantry.bound_tenant())) = (select tenantry.bound_tenant()));
create policy follow on tenantry.switches to tenantry_control using (true) with check (true);
create policy across on tenantry.switches for select to tenantry_platform
    using ((select tenantry.platform_reason()) is not null);
grant select on tenantry.switches to tenantry_app, tenantry_platform;
grant select, insert, update on tenantry.switches to tenantry_control;

-- The directory is read before anybody is bound: it says whose key a hash is. It is written bound: a tenant's scope
-- adds and removes that tenant's keys, the platform role those of operators.
alter table tenantry.directory_tenants enable row level security;
alter table tenantry.directory_tenants force row level security;
create policy find on tenantry.directory_tenants for select
    to tenantry_app, tenantry_gate, tenantry_control, tenantry_platform using (true);
create policy bound on tenantry.directory_tenants for insert to tenantry_app
    with check (tenant_id = (select tenantry.bound_tenant()));
grant select, insert on tenantry.directory_tenants to tenantry_app;
grant select on tenantry.directory_tenants to tenantry_gate, tenantry_control, tenantry_platform;

alter table tenantry.directory_keys enable row level security;
alter table tenantry.directory_keys force row level security;
create policy find on tenantry.directory_keys for select
    to tenantry_app, tenantry_control, tenantry_platform using (true);
create policy bound_add on tenantry.directory_keys for insert to tenantry_app
    with check (tenant_id = (select tenantry.bound_tenant()));
create policy bound_remove on tenantry.directory_keys for delete to tenantry_app
    using (tenant_id = (select tenantry.bound_tenant()));
create policy operators_add on tenantry.directory_keys for insert to tenantry_platform
    with check (case when (select tenantry.platform_reason()) is not null then tenant_id is null end);
create policy operators_remove on tenantry.directory_keys for delete to tenantry_platform
    using (case when (select tenantry.platform_reason()) is not null then tenant_id is null end);
grant select, insert, delete on tenantry.directory_keys to tenantry_app, tenantry_platform;
grant select on tenantry.directory_keys to tenantry_control;

-- Tables without a tenant's data.
grant select on tenantry.fleet_scope to tenantry_app;
grant select, update on tenantry.fleet_scope to tenantry_platform;
-- FOR SHARE needs the right to update at least one column.
grant select, update (only_row) on tenantry.fleet_scope to tenantry_gate;
grant select, update on tenantry.fleet_scope to tenantry_control;
grant select on tenantry.platform_specs to tenantry_app, tenantry_control;
grant select, insert, update, delete on tenantry.platform_specs to tenantry_platform;
grant select, insert, update on tenantry.operator_keys to tenantry_platform;
grant select on tenantry.operator_keys to tenantry_app;
grant select, update on tenantry.switch_clock to tenantry_control;
grant select, insert, update, delete on tenantry.instances to tenantry_control;
grant select on tenantry.instances to tenantry_platform;
