"""Real things for tests, made quickly: a cluster, databases, tenants."""
