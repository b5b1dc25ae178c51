"""Trains a causal language model on the selected samples."""

__version__ = "0.1.0"
