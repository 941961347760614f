"""Kill, modes and freeze: their history, epochs and acknowledgement."""
