"""cluster kmeans: finds what is there, is seeded, and says what it did."""

import numpy as np
import pytest
from siftune import Context, Outcome, Sample, Samples, UserError, apply
from siftune_kmeans_coreset.kmeans import KMeans, assign


def rows(vectors):
    samples = [Sample.of(f"question {i}", f"answer {i}") for i in range(len(vectors))]
    return Samples.of(samples, embedding=np.asarray(vectors, np.float32))


def topics(n=600, d=12, k=5, noise=0.05, unit=True, seed=0):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, k, n)
    points = np.eye(k, d)[labels] + noise * draw.normal(size=(n, d))
    if unit:
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points.astype(np.float32), labels


def cluster(vectors, tmp_path, **options):
    said = []
    run = Context(tmp_path, say=said.append, warn=said.append)
    return KMeans(**{"seed": 0, **options}).cluster(rows(vectors), run), run.figures, said


@pytest.mark.parametrize("unit", [True, False])
def test_finds_the_topics_and_tells_of_them(unit, tmp_path):
    vectors, truth = topics(unit=unit)
    (labels, centres, distances), told, _ = cluster(vectors, tmp_path, k=5)
    for label in range(5):
        assert len(set(truth[labels == label])) == 1
    assert told["spherical"] is unit
    assert told["empty"] == 0 and sum(told["sizes"]) == 600 and told["learnt_from"] == 600
    apart = np.linalg.norm(vectors - centres[labels], axis=1)
    assert np.allclose(distances, apart, atol=1e-6)
    assert np.isclose(told["inertia"], np.square(apart).sum(), rtol=1e-5)
    assert np.allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5) is unit


def test_spherical_compares_directions(tmp_path):
    vectors, truth = topics()
    longer = vectors * np.random.default_rng(2).uniform(0.1, 10, (600, 1))
    (labels, _, _), told, _ = cluster(longer, tmp_path, k=5, spherical=True)
    assert told["spherical"] and all(len(set(truth[labels == label])) == 1 for label in range(5))


def test_the_same_seed_gives_the_same_clusters(tmp_path):
    vectors, _ = topics(noise=0.5)
    first, again, other = (cluster(vectors, tmp_path, k=9, seed=seed)[0][0] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_auto_is_said_aloud(tmp_path):
    (_, centres, _), told, said = cluster(topics(200)[0], tmp_path)
    assert len(centres) == told["k"] == 10
    assert said == ["k = 10, the square root of half of 200 rows"]


def test_learns_from_a_sample_and_says_so(tmp_path):
    _, told, said = cluster(topics()[0], tmp_path, k=5, sample=20)
    assert told["learnt_from"] == 100 and sum(told["sizes"]) == 600
    assert said == ["the centres are learnt from 100 of 600 rows, 20 per cluster"]


def test_one_cluster_and_as_many_as_rows(tmp_path):
    vectors, _ = topics(30)
    (labels, _, _), _, _ = cluster(vectors, tmp_path, k=1)
    assert (labels == 0).all()
    (labels, _, distances), told, _ = cluster(vectors, tmp_path, k=30, spherical=False)
    assert distances.max() < 1e-3 and told["largest"] <= 2


def test_empty_clusters_are_told(tmp_path):
    _, told, said = cluster(np.repeat(np.eye(3), 10, axis=0), tmp_path, k=6)
    assert told["empty"] == 3 and "3 of 6 clusters are empty" in said


def test_more_clusters_than_rows(tmp_path):
    with pytest.raises(UserError, match="7 clusters out of 5 rows; ask for at most --k 5"):
        cluster(topics(5)[0], tmp_path, k=7)
    with pytest.raises(ValueError, match="at least 1"):
        KMeans(k=0)


def test_vectors_that_are_none(tmp_path):
    vectors, _ = topics(50)
    vectors[4] = np.nan
    answer, _, _ = cluster(vectors, tmp_path, k=3)
    assert isinstance(answer, Outcome) and answer.left_out == {4: "no vector"} and len(answer.values[0]) == 50
    vectors[6, 1] = np.inf
    with pytest.raises(UserError, match="NaN or an infinity"):
        cluster(vectors, tmp_path, k=3)
    vectors[6] = 0
    with pytest.raises(UserError, match="1 vectors are zero"):
        cluster(vectors, tmp_path, k=3, spherical=True)
    _, told, _ = cluster(vectors, tmp_path, k=3)
    assert told["spherical"] is False


def test_assign_is_the_nearest_centre():
    draw = np.random.default_rng(0)
    points, centres = (draw.normal(size=(n, 7)).astype("float32") for n in (500, 20))
    labels, distances = assign(points, centres)
    every = np.linalg.norm(points[:, None] - centres[None], axis=2)
    assert (labels == every.argmin(axis=1)).all() and np.allclose(distances, every.min(axis=1), atol=1e-5)


def test_through_the_engine():
    labels, centres, distances = apply(KMeans(k=5), rows(topics()[0]))
    assert len(labels) == len(distances) == 600 and centres.shape == (5, 12)
