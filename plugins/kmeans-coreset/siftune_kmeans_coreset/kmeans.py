"""cluster kmeans: k-means by faiss, spherical where the vectors have length 1."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from siftune import Context, Method, Outcome, Samples, UserError, hookimpl

from . import vectors
from .vectors import Floats, Ints


class KMeans(Method):
    """k-means over the vectors of an embed step."""

    k: Annotated[int | Literal["auto"], "clusters; auto is the square root of half the rows"] = "auto"
    spherical: Annotated[bool | None, "compare directions only; by default if all vectors have length 1"] = None
    iterations: Annotated[int, "rounds of k-means"] = 25
    sample: Annotated[int, "rows per cluster to learn the centres from; all rows are then assigned"] = 256
    embedding: Annotated[str, "column of vectors"] = "embedding"
    seed: Annotated[int | None, "of the start and of the sample"] = None

    def __post_init__(self) -> None:
        if self.k != "auto" and self.k < 1:
            raise ValueError("--k is at least 1")
        if self.iterations < 1 or self.sample < 1:
            raise ValueError("--iterations and --sample are at least 1")

    def needs(self) -> list[str]:
        return [self.embedding]

    @hookimpl
    def cluster(self, samples: Samples, run: Context) -> Any:
        points, present = vectors.read(samples, self.embedding)
        k = self._k(len(points), run)
        norms = vectors.lengths(points)
        spherical = vectors.is_unit(norms) if self.spherical is None else self.spherical
        if spherical:
            points = vectors.unit(points, [samples[int(at)].id for at in present], self.embedding)
        learnt = self._sampled(points, k, run)
        middles = centres(learnt, k, spherical=spherical, iterations=self.iterations, seed=self.seed or 0)
        labels, distances = assign(points, middles)
        sizes = np.bincount(labels, minlength=k)
        run.note(
            k=k,
            spherical=spherical,
            learnt_from=len(learnt),
            inertia=float(np.square(distances).sum()),
            empty=int((sizes == 0).sum()),
            smallest=int(sizes.min()),
            median_size=float(np.median(sizes)),
            largest=int(sizes.max()),
            sizes=sizes.tolist(),
        )
        if not sizes.all():
            run.warn(f"{int((sizes == 0).sum())} of {k} clusters are empty")
        return _spread_out(len(samples), present, labels, middles, distances)

    def _k(self, n: int, run: Context) -> int:
        if self.k == "auto":
            k: int = max(1, round((n / 2) ** 0.5))
            run.say(f"k = {k}, the square root of half of {n} rows")
            return k
        if self.k > n:
            raise UserError(f"cluster kmeans: {self.k} clusters out of {n} rows; ask for at most --k {n}")
        return self.k

    def _sampled(self, points: Floats, k: int, run: Context) -> Floats:
        wanted = k * self.sample
        if len(points) <= wanted:
            return points
        run.say(f"the centres are learnt from {wanted} of {len(points)} rows, {self.sample} per cluster")
        rows = np.random.default_rng(self.seed or 0).choice(len(points), wanted, replace=False)
        return points[np.sort(rows)]


def centres(points: Floats, k: int, *, spherical: bool, iterations: int, seed: int) -> Floats:
    """The centres `(k, d)` of k-means over all the points, started by k-means++."""
    import faiss

    settings = faiss.ClusteringParameters()
    settings.niter, settings.seed, settings.spherical = iterations, seed % 2**31, spherical
    settings.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    settings.min_points_per_centroid, settings.max_points_per_centroid = 1, len(points)
    d = points.shape[1]
    clustering = faiss.Clustering(d, k, settings)
    clustering.train(points, faiss.IndexFlatIP(d) if spherical else faiss.IndexFlatL2(d))
    found: Floats = faiss.vector_to_array(clustering.centroids).reshape(k, d).astype(np.float32)
    return found


def assign(points: Floats, centres: Floats) -> tuple[Ints, Floats]:
    """The nearest centre of every point and the distance to it, `(n,)` each; on unit vectors and unit centres
    that is also the centre of the greatest cosine."""
    labels = np.empty(len(points), np.int64)
    distances = np.empty(len(points), np.float32)
    norms = np.square(centres, dtype=np.float64).sum(axis=1).astype(np.float32)
    for part in vectors.blocks(len(points), 4096):
        labels[part] = np.argmin(norms - 2 * (points[part] @ centres.T), axis=1)
        apart = points[part].astype(np.float64) - centres[labels[part]]
        distances[part] = np.sqrt(np.square(apart).sum(axis=1))
    return labels, distances


def _spread_out(n: int, present: Ints, labels: Ints, middles: Floats, distances: Floats) -> Any:
    """The result for all rows of the view, those without a vector left out."""
    if len(present) == n:
        return labels, middles, distances
    every, far = np.zeros(n, np.int64), np.zeros(n, np.float32)
    every[present], far[present] = labels, distances
    missing = np.setdiff1d(np.arange(n), present)
    return Outcome((every, middles, far), left_out={int(at): "no vector" for at in missing})
