"""Use cases of people: each checks a role, acts and journals in one transaction."""
