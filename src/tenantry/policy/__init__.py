"""Cedar policies in layers: parsed once a version, decided in process, with reasons and obligations."""
