-- Who may call what. Functions run with the caller's rights and row security; these grants are the doors.

-- name: grants :script
revoke execute on all functions in schema tenantry from public;
grant execute on function
    tenantry.now(), tenantry.raise_unbound(), tenantry.bound_tenant(), tenantry.bound_batch(),
    tenantry.platform_reason()
to tenantry_gate, tenantry_app, tenantry_platform, tenantry_control;
grant execute on function
    tenantry.left_of_v1, tenantry.leaf_v1, tenantry.refusal_detail_v1,
    tenantry.ask_approval_v1, tenantry.open_run_v1, tenantry.decide_v1, tenantry.begin_v1, tenantry.begin_one_v1, tenantry.settle_one_v1, tenantry.settle_v1,
    tenantry.settle_rest_v1, tenantry.scopes_of_v1, tenantry.batch_v1
to tenantry_gate;
grant execute on function
    tenantry.leaf_v1, tenantry.journal_note_v1, tenantry.journal_admin_v1, tenantry.switch_v1, tenantry.switch_scope_v1,
    tenantry.renew_instance_v1, tenantry.clear_overrun_v1
to tenantry_control;
grant execute on function
    tenantry.leaf_v1, tenantry.put_scope_v1, tenantry.bump_policy_version_v1, tenantry.journal_note_v1,
    tenantry.journal_admin_v1
to tenantry_app;
grant execute on function tenantry.bump_fleet_version_v1 to tenantry_platform;
