"""Thread settings that do not collapse when the machine is busy, set before any library counts the cores."""

from __future__ import annotations

import os

# Two OpenMP threads that spin for each other fall to a hundredth of their speed when a third process wants a
# core; threads that wait asleep keep four fifths of it. The user's own settings always win.
DEFAULTS = {
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def settle() -> None:
    """Put the defaults into the environment where the user has not set them. Call before importing torch."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def shown() -> dict[str, str]:
    """The thread settings in force, for `siftune doctor`."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", *DEFAULTS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return {"cores": str(cores), **{name: os.environ.get(name, "unset") for name in names}}
