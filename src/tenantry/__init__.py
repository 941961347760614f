"""A shared control plane for many customers' AI agents."""

__version__ = "0.1.0"
