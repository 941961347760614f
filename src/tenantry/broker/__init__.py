"""Secrets: kept sealed, injected by an adapter, never seen by an agent."""
