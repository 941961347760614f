"""What only scopes can make: the proof that something is bound to a tenant.

Constructors ask for a token that only `scope.py` has the business to use; what they make is neither changed,
extended, copied nor pickled. Python cannot keep out who reaches for the token by name: a review has to.
"""

from __future__ import annotations

from typing import Final, Generic, NoReturn, TypeVar

from tenantry.core.ids import TenantId
from tenantry.storage.errors import ScopeMisuseError

T = TypeVar("T")


class Maker:
    """The token that constructors ask for; one exists, and only `scope.py` uses it."""

    __slots__ = ()


MAKER: Final = Maker()


class Sealed:
    """Made here only, changed by nobody, and neither copied nor pickled into being."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        if cls.__module__ not in {__name__, "tenantry.storage.scope"}:
            raise ScopeMisuseError("scopes and bound calls cannot be extended")

    def __reduce_ex__(self, protocol: object, /) -> NoReturn:
        raise ScopeMisuseError("a scope or bound call cannot be copied or pickled")


class BoundCall(Sealed, Generic[T]):
    """A call that a scope made, ready for the shard's batcher. `statement_name` says which batch it joins."""

    __slots__ = ("_payload", "_shard_id", "_statement_name", "_tenant_id")

    def __init__(
        self, maker: Maker, tenant_id: TenantId, shard_id: str, statement_name: str, payload: T
    ) -> None:
        if maker is not MAKER:
            raise ScopeMisuseError("only a scope makes bound calls: use scope.call(...)")
        self._tenant_id = tenant_id
        self._shard_id = shard_id
        self._statement_name = statement_name
        self._payload = payload

    @property
    def tenant_id(self) -> TenantId:
        return self._tenant_id

    @property
    def shard_id(self) -> str:
        return self._shard_id

    @property
    def statement_name(self) -> str:
        return self._statement_name

    @property
    def payload(self) -> T:
        return self._payload


class TenantBound(Sealed):
    """What has transactions bound to one tenant; `TenantScope` is the only one there is."""

    __slots__ = ()

    @property
    def tenant_id(self) -> TenantId:
        raise NotImplementedError
