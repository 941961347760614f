"""The ways out that `perform` calls: HTTP, models, egress rules, breakers."""
