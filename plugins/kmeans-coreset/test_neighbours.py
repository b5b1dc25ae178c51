"""Nearest neighbours, facility location and spread on toy vectors."""

import itertools
import json

import numpy as np
import pytest
from siftune import Budget, Column, Context, Pool, Sample, Samples, Step, UserError, apply
from siftune.methods import found
from siftune.testing import conforms
from siftune_kmeans_coreset import neighbours
from siftune_kmeans_coreset.facility import Facility, Graph
from siftune_kmeans_coreset.nearest import Nearest
from siftune_kmeans_coreset.shares import due, merged
from siftune_kmeans_coreset.spread import Spread

NAN = float("nan")


def points(n=500, d=10, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def rows(vectors, **columns):
    samples = [Sample.of(f"question {i}", f"answer {i}") for i in range(len(vectors))]
    return Samples.of(samples, embedding=np.asarray(vectors, np.float32), **columns)


def context(tmp_path):
    return Context(tmp_path)


@pytest.mark.parametrize("among", [True, False])
@pytest.mark.parametrize("shift", [0, 1000])
def test_nearest_is_exact(among, shift):
    vectors, others = points() + np.float32(shift), points(300, seed=1) + np.float32(shift)
    vectors[7] = vectors[3]
    pool = vectors if among else others
    every = np.square(vectors[:, None].astype(float) - pool[None].astype(float)).sum(axis=2)
    if among:
        np.fill_diagonal(every, np.inf)
    index, distance = neighbours.nearest(vectors, None if among else others)
    assert (index == every.argmin(axis=1)).all()
    assert np.array_equal(distance, np.sqrt(every.min(axis=1)))


def test_several_are_the_nearest_in_order_and_may_be_few():
    vectors = points(60)
    every = np.linalg.norm(vectors[:, None].astype(float) - vectors[None], axis=2)
    np.fill_diagonal(every, np.inf)
    index, distance = neighbours.several(vectors, 5)
    assert (index == np.argsort(every, axis=1)[:, :5]).all()
    assert np.allclose(distance, np.sort(every, axis=1)[:, :5])
    index, distance = neighbours.several(points(3), 5)
    assert (index[:, 2:] == -1).all()
    assert np.isinf(distance[:, 2:]).all() and np.isfinite(distance[:, :2]).all()


def test_above_the_limit_an_index_finds_nearly_all(monkeypatch):
    vectors = points(4000, 16)
    true, _ = neighbours.nearest(vectors)
    monkeypatch.setattr(neighbours, "PAIRS", 10_000)
    found, _ = neighbours.nearest(vectors)
    assert (found == true).mean() > 0.8


def test_score_nearest_gives_distance_and_id():
    vectors = points(40)
    vectors[11] = vectors[30]
    samples = rows(vectors)
    told = apply(Nearest(), samples)
    assert told["nearest"][11] == told["nearest"][30] == 0
    assert told["nearest.id"][11] == samples[30].id and told["nearest.id"][30] == samples[11].id
    with pytest.raises(UserError, match="a single row has no other"):
        apply(Nearest(), rows(points(1)))


def test_score_nearest_against_a_file_of_vectors(tmp_path):
    vectors, file = points(40), tmp_path / "other.npy"
    np.save(file, vectors[[5, 9]])
    told = apply(Nearest(against=file), rows(vectors))
    assert told["nearest"][9] == 0 and told["nearest.id"][9] == "row 2"
    np.save(file, points(4, d=3))
    with pytest.raises(UserError, match="10 dimensions"):
        apply(Nearest(against=file), rows(vectors))
    np.save(file, np.full((2, 10), np.nan))
    with pytest.raises(UserError, match="NaN"):
        apply(Nearest(against=file), rows(vectors))


@pytest.mark.skipif("sentence" not in found("embed"), reason="the plugin with embed sentence is not installed")
def test_score_nearest_against_other_rows(tmp_path):
    asked = ["Why is the sky blue?", "Sort the numbers 3, 1 and 2.", "Name a bird that cannot fly."]
    pool = Pool.of([Sample.of(one, "An answer.") for one in asked])
    samples = pool.view()
    encoder = "sentence --view prompt"
    vectors = apply(Step.parse(f"embed {encoder}").method(), samples)
    samples = Samples.of(list(samples), embedding=vectors)
    # questions of a test set have no answers
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps({"instruction": asked[1], "output": ""}) + "\n")
    told = apply(Nearest(against=file, encoder=encoder), samples)
    at = [sample.prompt for sample in samples].index(asked[1])
    assert told["nearest"][at] < 1e-3 and np.argmin(told["nearest"]) == at
    assert set(told["nearest.id"]) == {Sample.of(asked[1], "").id}
    with pytest.raises(UserError, match="'embed sentence' does not make the vectors of 'embedding'"):
        apply(Nearest(against=file), samples)


def test_lazy_facility_location_is_the_greedy_one():
    vectors = points(200, 4)
    graph = Graph.of(vectors, 10)
    likeness = np.zeros((200, 200))
    for row, (start, stop) in enumerate(itertools.pairwise(graph.starts)):
        likeness[row, graph.served[start:stop]] = graph.likeness[start:stop]
    best, order = np.zeros(200), []
    for _ in range(60):
        gains = np.maximum(likeness - best, 0).sum(axis=1)
        gains[order] = -1
        order.append(int(gains.argmax()))
        best = np.maximum(best, likeness[order[-1]])
    chosen, gains = graph.greedy(60)
    assert chosen.tolist() == order
    assert np.isclose(gains.sum(), best.sum()) and (np.diff(gains) <= 1e-12).all()


def test_select_facility_takes_one_from_each_heap(tmp_path):
    heaps = np.repeat(np.eye(4), 25, axis=0) * 10 + points(100, 4) * 0.1
    samples = rows(heaps)
    run = context(tmp_path)
    chosen = Facility(neighbours=30).select(samples, Budget.parse(4).for_view(samples), run).positions
    assert sorted(chosen // 25) == [0, 1, 2, 3]
    assert run.figures["of"] == 100 and len(np.load(tmp_path / "gains.npy")) == 4
    assert len(apply(Facility(), rows(np.ones((5, 2))), budget=3)) == 3
    with pytest.raises(ValueError, match="at least 1"):
        Facility(neighbours=0)


LABELS = [0, 0, 0, 0, 1, 1, 1, 2, NAN]
IFD = [0.9, 1.3, 0.2, NAN, 0.5, 0.6, 0.7, 0.8, 0.9]
FAR = [0.4, 0.1, 0.3, 0.2, 0.9, 0.8, 0.7, 0.5, NAN]


def spread(budget=None, **options):
    samples = rows(points(9, 2), cluster=LABELS, cluster_distance=FAR, ifd=IFD)
    samples.pool.columns["ifd"].about = Column("ifd", better="higher", below=1)
    return Spread(**{"seed": 0, **options}).select(samples)


def test_spread_by_the_distance_to_the_centre():
    assert spread(pick="nearest").positions.tolist() == [1, 6, 7, 3, 5, 2, 4, 0]
    assert spread(pick="farthest", per=1).positions.tolist() == [0, 4, 7]
    assert spread(pick="nearest").left_out == {8: "no cluster"}


def test_spread_by_a_column_obeys_its_range():
    answer = spread(by="ifd", per=2)
    assert answer.positions.tolist() == [6, 0, 7, 5, 2]
    assert answer.left_out == {1: "ifd 1.3 is not below 1", 3: "no ifd", 8: "no cluster"}
    with pytest.raises(ValueError, match="either --pick or --by"):
        Spread(by="ifd", pick="nearest")


def test_spread_at_random_hangs_on_seed_and_content_alone():
    first, again, other = (spread(seed=seed).positions.tolist() for seed in (0, 0, 5))
    assert first == again != other and sorted(first) == list(range(8))


def test_turns_of_clusters():
    sizes = np.array([8, 4, 1])
    for share, wanted in (("proportional", [8, 4, 1]), ("equal", [6, 6, 1]), ("root", [8, 4, 1])):
        clusters, places = due(sizes, share)
        assert sorted(zip(clusters, places, strict=True)) == [(c, p) for c in range(3) for p in range(sizes[c])]
        beginning = np.bincount(clusters[:6], minlength=3)
        assert np.abs(beginning - np.array(wanted) * 6 / sum(wanted)).max() <= 1
    assert merged([np.array([5, 6]), np.array([7])], "equal").tolist() == [5, 7, 6]
    assert merged([], "equal").tolist() == []


def test_so_many_of_every_cluster_through_the_engine():
    assert len(apply(Spread(per=3), rows(points(40), cluster=np.arange(40) % 4))) == 12


@pytest.mark.parametrize(
    ("hook", "name", "options"),
    [
        ("cluster", "kmeans", {"k": 2}),
        ("score", "nearest", {}),
        ("select", "coreset", {}),
        ("select", "spread", {}),
        ("select", "facility", {}),
    ],
)
def test_rules_of_the_hooks(hook, name, options):
    assert conforms(hook, name, **options)


def test_an_encoder_that_is_none_is_told_before_the_run(tmp_path):
    file = tmp_path / "other.jsonl"
    with pytest.raises(ValueError, match=r"--encoder: .*Did you mean 'sentence'"):
        Nearest(against=file, encoder="sentense")
    with pytest.raises(ValueError, match=r"--encoder: .*vieww"):
        Nearest(against=file, encoder="sentence --vieww prompt")
