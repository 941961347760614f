"""The fleet of the fault tests: one provider, one model, and as many tenants as a test wants."""

from __future__ import annotations

from typing import Any

MODEL_KEY = "sk-example-faults-000001"
AMPLE = 1_000_000_000


def ticket_token(tenant: str) -> str:
    """The tenant's own credential at the ticket service."""
    return f"zd-example-{tenant}-000001"


def platform_document(model_url: str) -> dict[str, Any]:
    """The part of the file that is everybody's."""
    return {
        "version": 1,
        "guardrails": {
            "text": '@id("no_high_risk") forbid (principal, action in Action::"risk/high_risk", resource);'
        },
        "quota_classes": {"ample": {}},
        "providers": {
            "example": {
                "base_url": model_url,
                "credential": {"env": "MODEL_KEY"},
                "allow_private": True,
                "connections_max": 1024,
            }
        },
        "models": {
            "example-small": {
                "provider": "example",
                "context_window": 8192,
                "max_output_tokens": 512,
                "input_microusd_per_mtok": 600_000,
                "output_microusd_per_mtok": 600_000,
            }
        },
    }


def tenant_document(
    name: str, *, limits: dict[str, int] | None = None, tickets_url: str | None = None
) -> dict[str, Any]:
    """A tenant with one workspace and agent; with `tickets_url` a help desk and a web that it may not reach."""
    document: dict[str, Any] = {
        "display_name": name,
        "quota_class": "ample",
        "workspaces": {"main": {"external_account_id": f"acct_{name}"}},
        "agents": {"helper": {"workspace": "main", "agent_class": "assistant", "policy_profile": "open"}},
        "policy": {"text": '@id("reads") permit (principal, action in Action::"risk/read", resource);'},
        "limits": limits or {},
    }
    if tickets_url is not None:
        document |= _with_desk(tickets_url)
    return document


def _with_desk(tickets_url: str) -> dict[str, Any]:
    agent = {"workspace": "main", "agent_class": "assistant", "policy_profile": "registered"}
    return {
        "agents": {"helper": agent},
        "policy": {
            "text": '@id("reads") permit (principal, action in Action::"risk/read", resource);\n'
            '@id("tickets") permit (principal, action == Action::"ticket.update", resource == System::"zendesk");'
        },
        "profiles": {
            "registered": {
                "text": '@id("registered") permit (principal, action, resource);\n'
                '@id("no_web") @reason("No agent here reaches the open web.") '
                'forbid (principal, action in Action::"reach/web", resource);'
            }
        },
        "integrations": {
            "zendesk": {
                "base_url": tickets_url,
                "allow_private": True,
                "auth": {"secret": "desk"},
                "actions": {
                    "ticket.update": {
                        "risk": "write",
                        "method": "PUT",
                        "path": "/api/v2/tickets/{record_id}",
                        "idempotency_header": "Idempotency-Key",
                    }
                },
            },
            "web": {
                "base_url": tickets_url,
                "allow_private": True,
                "actions": {"web.fetch": {"risk": "read", "method": "GET", "url_from_input": "url"}},
            },
        },
        "secrets": {
            "desk": {
                "workspace": "main",
                "system": "zendesk",
                "agent_classes": ["assistant"],
                "capability": "mutate",
                "value": {"env": "DESK"},
            }
        },
    }
