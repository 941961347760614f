"""A client of Tenantry's HTTP API: typed, synchronous, nothing but the standard library and msgspec.

client = Client(TcpTransport("http://127.0.0.1:8700"), api_key)
client.switch(level="tenant", verb="kill", tenant_id="acme", reason="runaway")
"""

from tenantry_client.client import Client
from tenantry_client.transport import (
    ApiError,
    ClientError,
    SocketTransport,
    TcpTransport,
    Transport,
    UnreachableError,
)
from tenantry_client.types import (
    ApiKeyRow,
    AppliedFleet,
    AppliedTenant,
    Change,
    CreatedKey,
    Doors,
    InstanceAnswer,
    JournalEntry,
    Meter,
    MeterReading,
    OpenedRun,
    PolicyVersion,
    Problem,
    PutSecret,
    RunRow,
    RunShown,
    ScopeMeters,
    SecretVersion,
    StoppedScope,
    SwitchResult,
    SwitchRow,
    TenantRow,
    TenantState,
)

__all__ = [
    "ApiError",
    "ApiKeyRow",
    "AppliedFleet",
    "AppliedTenant",
    "Change",
    "Client",
    "ClientError",
    "CreatedKey",
    "Doors",
    "InstanceAnswer",
    "JournalEntry",
    "Meter",
    "MeterReading",
    "OpenedRun",
    "PolicyVersion",
    "Problem",
    "PutSecret",
    "RunRow",
    "RunShown",
    "ScopeMeters",
    "SecretVersion",
    "SocketTransport",
    "StoppedScope",
    "SwitchResult",
    "SwitchRow",
    "TcpTransport",
    "TenantRow",
    "TenantState",
    "Transport",
    "UnreachableError",
]
