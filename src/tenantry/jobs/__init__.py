"""Background work: idempotent, under a leader's lease, with a metric for its lag."""
