"""Prometheus metrics of the control plane; no label names a tenant.

A scrape reads the database once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tenantry.control.instances import Instances
from tenantry.core.errors import TenantryError

CONTENT_TYPE: Final = "text/plain; version=1.0.0; charset=utf-8"
_BUCKETS: Final = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0)


class Metrics:
    """One a control process. `job_lags` gives each job's seconds since it last succeeded."""

    def __init__(self, job_lags: Callable[[], Mapping[str, float]] = dict) -> None:
        self._job_lags = job_lags
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tenantry_api_requests",
            "Requests to the control plane, by operation and class of status.",
            ("operation", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "tenantry_api_request_seconds",
            "Time to answer a request to the control plane.",
            ("operation",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._up = Gauge(
            "tenantry_database_up",
            "1 when the database answered this scrape.",
            registry=self._registry,
        )
        self._instances = Gauge(
            "tenantry_instances",
            "Processes with a lease, by role; lapsed ones apart.",
            ("role", "lease"),
            registry=self._registry,
        )
        self._behind = Gauge(
            "tenantry_switches_behind",
            "How many switches the process that is furthest behind has not acknowledged.",
            registry=self._registry,
        )
        self._lag = Gauge(
            "tenantry_job_lag_seconds",
            "Seconds since a background job last succeeded.",
            ("job",),
            registry=self._registry,
        )

    def note(self, operation: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self._requests.labels(operation, f"{status // 100}xx").inc()
        self._seconds.labels(operation).observe(seconds)

    async def scrape(self, instances: Instances) -> bytes:
        """The text that Prometheus reads; one round trip."""
        self._instances.clear()
        try:
            rows = await instances.observe()
        except TenantryError:
            self._up.set(0)
        else:
            self._up.set(1)
            for row in rows:
                self._instances.labels(row.role, "lapsed" if row.lapsed else "live").inc()
            acked = [row.acked_switch_seq for row in rows if not row.lapsed]
            self._behind.set(max(acked) - min(acked) if acked else 0)
        for job, lag_s in self._job_lags().items():
            self._lag.labels(job).set(lag_s)
        return generate_latest(self._registry)
