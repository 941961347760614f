"""Values every layer speaks in: ids, envelope, action, verdict, events, errors, clock; no I/O."""
