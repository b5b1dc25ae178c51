"""k-center greedy against the plain loop in float64: every pick and radius, from every kind of start."""

import os
import subprocess
import sys

import numpy as np
import pytest
from siftune_kmeans_coreset.kcenter import k_center, medoid


def plain(vectors, k, start, rows=None):
    """Farthest first as one would write it down: all distances in float64, the lowest of equal ones."""
    points = vectors.astype(np.float64)
    near = np.full(len(points), np.inf)
    if rows is not None:
        near[np.setdiff1d(np.arange(len(points)), rows)] = -np.inf
    single = isinstance(start, int)
    order, radii = ([start] if single else []), []
    for row in [start] if single else start:
        near = np.minimum(near, np.square(points - points[row]).sum(axis=1))
    if single:
        radii.append(near.max())
    while len(order) < k and near.max() > 0:
        row = int(near.argmax())
        order.append(row)
        near = np.minimum(near, np.square(points - points[row]).sum(axis=1))
        radii.append(near.max())
    return np.array(order), np.sqrt(radii)


def clustered(n=4000, d=48, topics=30, noise=0.4, seed=0):
    """Unit vectors around so many topics."""
    draw = np.random.default_rng(seed)
    middles = draw.normal(size=(topics, d))
    points = middles[draw.integers(0, topics, n)] + noise * draw.normal(size=(n, d))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


SMALL = {"outer": 96, "inner": 8}  # so that bounds go stale, and rounds are many

CASES = {
    "clustered": (clustered(), 300),
    "isotropic": (clustered(2000, topics=2000), 300),
    "far from the origin": (clustered(2000) + np.float32(30), 200),
    "whole numbers, full of ties": (
        np.random.default_rng(1).integers(0, 3, (3000, 6)).astype(np.float32), 900,
    ),
    "all as far from each other": (np.eye(200, dtype=np.float32), 200),
    "each row twenty times": (np.repeat(clustered(100), 20, axis=0), 150),
    "one dimension": (clustered(3000)[:, :1].copy(), 500),
    "tiny": (clustered(1000) * np.float32(1e-6), 100),
    "huge": (clustered(1000) * np.float32(1e12), 100),
}  # fmt: skip


@pytest.mark.parametrize("sizes", [{}, SMALL], ids=["as it is", "small blocks"])
@pytest.mark.parametrize("case", CASES)
def test_picks_are_those_of_the_plain_loop(case, sizes):
    vectors, k = CASES[case]
    order, radii = plain(vectors, k, 7)
    picked = k_center(vectors, k, 7, **sizes)
    assert picked.order.tolist() == order.tolist()
    assert picked.radii.tolist() == radii.tolist()


@pytest.mark.parametrize("start", ["first", "medoid", "several"])
def test_every_kind_of_start(start):
    vectors = CASES["clustered"][0]
    central = medoid(vectors, np.arange(4000))
    start = {"first": 0, "medoid": central, "several": np.array([9, 17, 3999])}[start]
    picked = k_center(vectors, 200, start, **SMALL)
    order, radii = plain(vectors, 200, start)
    assert picked.order.tolist() == order.tolist()
    assert picked.radii.tolist() == radii.tolist()


def test_only_the_named_rows_are_picked_and_counted():
    vectors = CASES["clustered"][0]
    rows = np.arange(0, 4000, 3)
    picked = k_center(vectors, 150, 3, rows, **SMALL)
    order, radii = plain(vectors, 150, 3, rows)
    assert (picked.order.tolist(), picked.radii.tolist()) == (order.tolist(), radii.tolist())


def test_a_shorter_run_is_the_beginning_of_a_longer_one():
    vectors = CASES["clustered"][0]
    assert k_center(vectors, 40, 0).order.tolist() == k_center(vectors, 200, 0).order[:40].tolist()


def test_ends_where_every_row_lies_on_a_chosen_one():
    vectors = np.repeat(clustered(30), 5, axis=0)
    picked = k_center(vectors, 100, 0)
    assert len(picked.order) == 30 and picked.radii[-1] == 0
    assert len(k_center(vectors, 10, np.arange(150)).order) == 0


def test_nothing_is_asked_for():
    assert len(k_center(clustered(50), 0, 0).order) == 0
    assert len(k_center(clustered(50), 5, 0, np.array([], int)).order) == 0
    assert k_center(clustered(50), 5, 4, np.array([4])).order.tolist() == [4]


def test_medoid_has_the_least_sum_of_squared_distances():
    vectors = clustered(300)
    sums = np.square(vectors[:, None].astype(float) - vectors[None]).sum(axis=(1, 2))
    assert medoid(vectors, np.arange(300)) == sums.argmin()


def test_threads_change_nothing():
    program = (
        "import numpy as np; from siftune_kmeans_coreset.kcenter import k_center;"
        "v = np.random.default_rng(0).normal(size=(3000, 64)).astype('float32');"
        "print(k_center(v, 200, 0, outer=128, inner=16).order.tolist())"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True, text=True, check=True,
        ).stdout
        for threads in ("1", "2")
    ]  # fmt: skip
    assert said[0] == said[1]
