"""What a killed training goes on from: weights, the optimizer's moments and how far it was, as safetensors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WHOLE = "progress.json"  # written last: a folder without it was cut short
BEST = "best.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def write(net: Any, optimizer: Any, progress: Mapping[str, Any], folder: Path) -> None:
    """Write a checkpoint and drop the one before it."""
    from safetensors.torch import save_file

    place = folder / f"checkpoint-{progress['seen']}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    moments = {
        f"{at}.{name}": state[name].detach().cpu().contiguous()
        for at, state in optimizer.state_dict()["state"].items()
        for name in MOMENTS
    }
    save_file(_plain(net), place / "weights.safetensors")
    save_file(moments, place / "moments.safetensors")
    for file in place.iterdir():
        _synced(file)
    unfinished = place / (WHOLE + ".unfinished")
    unfinished.write_text(json.dumps(dict(progress)), encoding="utf-8")
    os.replace(unfinished, place / WHOLE)
    for other in folder.glob("checkpoint-*"):
        if other != place:
            shutil.rmtree(other, ignore_errors=True)


def resume(net: Any, optimizer: Any, folder: Path) -> dict[str, Any] | None:
    """Put back what the newest whole checkpoint has, and give how far it was; None if there is none."""
    from safetensors.torch import load_file

    whole = [mark.parent for mark in folder.glob(f"checkpoint-*/{WHOLE}")]
    if not whole:
        return None
    place = max(whole, key=lambda path: int(path.name.rpartition("-")[2]))
    net.load_state_dict(load_file(place / "weights.safetensors"))
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in load_file(place / "moments.safetensors").items():
        at, _, moment = name.partition(".")
        state.setdefault(int(at), {})[moment] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return dict(json.loads((place / WHOLE).read_text(encoding="utf-8")))


def write_best(net: Any, folder: Path) -> None:
    """Keep these weights as the best so far."""
    from safetensors.torch import save_file

    temporary = folder / (BEST + ".unfinished")
    save_file(_plain(net), temporary)
    _synced(temporary)
    os.replace(temporary, folder / BEST)


def load_best(net: Any, folder: Path) -> None:
    """Take the best weights."""
    from safetensors.torch import load_file

    net.load_state_dict(load_file(folder / BEST))


def clear(folder: Path) -> None:
    """Remove all of it."""
    for place in folder.glob("checkpoint-*"):
        shutil.rmtree(place, ignore_errors=True)
    (folder / BEST).unlink(missing_ok=True)


def _plain(net: Any) -> dict[str, Any]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}


def _synced(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
