"""Step 4, credential: the tenant's own, from the broker; the adapter injects it, and no agent ever sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenantry.broker.secrets import Credential, CredentialRefused, SecretRequest
from tenantry.core.action import Risk

if TYPE_CHECKING:
    from tenantry.broker.broker import Broker
    from tenantry.core.action import Action
    from tenantry.gate.context import Subject
    from tenantry.registry.facts import TenantFacts
    from tenantry.storage.scope import TenantScope


class FetchCredential:
    """Asks the broker for what one action needs."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def __call__(
        self, scope: TenantScope, subject: Subject, facts: TenantFacts, action: Action
    ) -> Credential | CredentialRefused | None:
        """None where the destination wants none. At most one round trip, none when the secret is cached."""
        if action.kind == "model":
            provider = facts.providers.get(action.target.system)
            if provider is None or provider.credential is None:
                return None
            return await self._broker.platform_credential(scope, action.target.system)
        declared = facts.actions.get(action.name)
        if declared is None:
            return None
        integration = facts.integrations[declared[0]]
        if integration.auth is None:
            return None
        return await self._broker.credential(
            scope,
            SecretRequest(
                workspace_id=subject.workspace_id,
                agent_class=subject.agent.agent_class,
                system=declared[0],
                secret_name=integration.auth.secret,
                mutates=action.risk > Risk.READ,
            ),
        )
