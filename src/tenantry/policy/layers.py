"""Layers: where a policy stands, and which layers hold for a request.

Most binding first: ``guardrail`` (the platform's), ``tenant``, ``workspace/NAME``, ``profile/NAME``. A lower
layer narrows what the ones above allow and never widens it (DESIGN §6).
"""

from __future__ import annotations

from typing import Final

from tenantry.core.errors import InvalidInputError
from tenantry.core.ids import PolicyId, parse_name

GUARDRAIL: Final = "guardrail"
TENANT: Final = "tenant"
WORKSPACE: Final = "workspace"
PROFILE: Final = "profile"

# Names in policy ids that only the engine gives; an author may not use them.
NO_PERMIT: Final = "no_permit"
RESERVED_NAMES: Final = frozenset({NO_PERMIT})
# The layer of refusals that no policy made: the request itself cannot be decided on.
REQUEST: Final = "request"


def applicable_layers(workspace_id: str, policy_profile: str) -> tuple[str, str, str, str]:
    """The layers of one request, most binding first; one that was never written holds no policies."""
    return (GUARDRAIL, TENANT, f"{WORKSPACE}/{workspace_id}", f"{PROFILE}/{policy_profile}")


def policy_id(layer: str, name: str, policy_version: int) -> PolicyId:
    """``layer/name@version``. Names hold no ``/`` and no ``@``, so that ids of two policies never meet."""
    return PolicyId(f"{layer}/{name}@{policy_version}")


def layer_path(layer: str) -> str:
    """The JSON path that names a layer in errors."""
    return f"$.policies['{layer}']" if "/" in layer else f"$.policies.{layer}"


def is_name(text: str) -> bool:
    """Whether a policy or an action may bear this name."""
    try:
        parse_name(text)
    except InvalidInputError:
        return False
    return True


def check_layer_name(layer: str) -> None:
    """Raise `InvalidInputError` unless it is one of the four shapes above."""
    if layer in {GUARDRAIL, TENANT}:
        return
    head, _, name = layer.partition("/")
    if head not in {WORKSPACE, PROFILE}:
        msg = (
            f"no such policy layer: {layer[:100]!r}; it is guardrail, tenant, workspace/NAME or profile/NAME"
        )
        raise InvalidInputError(msg, path="$.policies")
    parse_name(name, path="$.policies")
