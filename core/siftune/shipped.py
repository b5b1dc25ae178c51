"""Where registry.toml and templates/ are: at the top of a checkout, or inside the installed wheel."""

from __future__ import annotations

from pathlib import Path


def path(name: str) -> Path:
    """The shipped file or folder of this name."""
    here = Path(__file__).parent
    checkout = here.parents[1]
    # an editable install may leave copies beside the module; the checkout's own files are the ones being edited
    if (checkout / "core" / "siftune").is_dir() and (checkout / name).exists():
        return checkout / name
    return here / name
