"""Threads that each do a block of rows by themselves, with BLAS on one thread inside.

BLAS' own threads meet several times in every product and spin until all are there; where another process
wants a core that costs many times what it gains. Blocks of rows need not meet at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

Workers = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


@contextmanager
def workers() -> Iterator[Workers]:
    """A function that applies a function to every part, as many at once as BLAS would have used threads."""
    threads = max((one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"), default=1)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:

        def work(do: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
            if threads == 1 or len(parts) < 2:
                return [do(part) for part in parts]
            return list(pool.map(do, parts))

        yield work
