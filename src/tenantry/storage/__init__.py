"""PostgreSQL: shards, scopes, statements, sealing, migrations, the embedded server; the only door to data."""
