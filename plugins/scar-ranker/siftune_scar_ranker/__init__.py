"""SCAR: ranks answers by the consistency of their style, and trains such rankers."""

__version__ = "0.1.0"
