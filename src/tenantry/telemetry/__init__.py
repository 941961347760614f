"""Logs, spans and metrics, bound to the envelope."""
