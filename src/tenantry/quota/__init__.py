"""Meters, windows and reservations: used + reserved never exceeds a limit."""
