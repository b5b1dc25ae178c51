"""Selective Reflection-Tuning (https://arxiv.org/abs/2402.10110): a teacher rewrites, a student chooses."""

__version__ = "0.1.0"
