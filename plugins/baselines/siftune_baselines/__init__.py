"""The simple ways to score and select: the plugin to read first."""

__version__ = "0.1.0"
