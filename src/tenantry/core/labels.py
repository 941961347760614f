"""Labels: data classes and trust that stick to a run and only ever grow (DESIGN §6)."""

from __future__ import annotations

from typing import NewType

Label = NewType("Label", str)
Labels = frozenset[Label]

UNTRUSTED: Label = Label("untrusted")
NO_LABELS: Labels = frozenset()
