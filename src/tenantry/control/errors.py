"""Why a person's write does not happen, where it is neither their role nor their input."""

from __future__ import annotations

from tenantry.core.errors import TenantryError


class PolicyFrozenError(TenantryError):
    """The tenant's policy is frozen: nothing that would change what is decided takes effect."""

    def __init__(self, tenant_id: str) -> None:
        super().__init__(f"the policy of tenant {tenant_id} is frozen; unfreeze it first")
        self.tenant_id = tenant_id


class SwitchedMeanwhileError(TenantryError):
    """Others switched the same scope at the same moment, again and again; nothing of this order took effect."""

    def __init__(self, level: str) -> None:
        super().__init__(f"the {level} was switched by somebody else at the same moment; look, and try again")
