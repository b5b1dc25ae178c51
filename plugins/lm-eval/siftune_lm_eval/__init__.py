"""Evaluates a model with the language model evaluation harness."""

__version__ = "0.1.0"
