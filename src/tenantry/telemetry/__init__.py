"""Logs, bound to the envelope."""
