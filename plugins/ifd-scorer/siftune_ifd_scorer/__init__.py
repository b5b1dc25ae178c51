"""Instruction-following difficulty, and other readings of the same two passes."""
