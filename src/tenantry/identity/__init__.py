"""Who calls: hashed API keys, run tokens, envelopes, the limiter of failed authentication."""
