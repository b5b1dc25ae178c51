"""nano, the small language model that ships with siftune."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"


def folder() -> Path:
    """Where config.json, the weights and the tokenizer are."""
    return Path(__file__).parent / "model"
