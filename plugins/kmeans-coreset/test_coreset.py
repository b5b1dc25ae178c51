"""select coreset: options, edges, and what it tells, on toy vectors."""

import numpy as np
import pytest
from siftune import Budget, Column, Context, Pool, Sample, UserError, apply
from siftune.samples import Held
from siftune_kmeans_coreset.coreset import Coreset
from siftune_kmeans_coreset.coverage import coverage
from siftune_kmeans_coreset.kcenter import k_center, medoid


def view(vectors, about=None, **columns):
    """Rows in id order with these vectors."""
    pool = Pool.of([Sample.of(f"question {i}", f"answer {i}") for i in range(len(vectors))])
    samples = pool.view()
    index = np.empty(len(pool), int)
    index[samples.rows] = np.arange(len(pool))
    pool.attach(Held(Column("embedding"), np.asarray(vectors, np.float32), index=index))
    for name, values in columns.items():
        placed = np.empty(len(pool))
        placed[samples.rows] = values
        pool.attach(Held((about or {}).get(name, Column(name)), placed))
    return samples


def unit(n=400, d=16, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def select(samples, budget, tmp_path, **options):
    said = []
    run = Context(tmp_path, say=said.append, warn=said.append)
    method = Coreset(**{"seed": 0, **options})
    answer = method.select(samples, Budget.parse(budget).for_view(samples), run)
    return answer, run.figures, said


@pytest.mark.parametrize("init", ["medoid", "random", "first"])
def test_order_is_that_of_the_search_and_a_smaller_budget_is_its_beginning(init, tmp_path):
    vectors = unit()
    long, told, _ = select(view(vectors), 60, tmp_path, init=init)
    radii = np.load(tmp_path / "radii.npy")
    short, _, _ = select(view(vectors), 20, tmp_path, init=init)
    start = {"medoid": medoid(vectors, np.arange(400)), "first": 0}.get(init, int(long.positions[0]))
    assert long.positions.tolist() == k_center(vectors, 60, start).order.tolist()
    assert short.positions.tolist() == long.positions[:20].tolist()
    assert len(radii) == 60 and (np.diff(radii) <= 0).all()
    assert told["radius_after"]["20"] == radii[19] and told["radius_after"]["60"] == radii[59]


def test_the_order_of_the_input_changes_nothing(tmp_path):
    vectors = unit()
    rows = [Sample.of(f"question {i}", f"answer {i}") for i in range(400)]
    chosen = []
    for order in (np.arange(400), np.random.default_rng(1).permutation(400)):
        pool = Pool.of([rows[i] for i in order])
        pool.attach(Held(Column("embedding"), vectors[order], index=np.arange(400)))
        samples = pool.view()
        for init in ("medoid", "random", "first"):
            answer, _, _ = select(samples, 50, tmp_path, init=init)
            chosen.append([samples[int(at)].id for at in answer.positions])
    assert chosen[:3] == chosen[3:]
    assert chosen[0] != chosen[1] != chosen[2]


def test_equal_vectors_are_folded_and_more_than_there_are_is_said(tmp_path):
    samples = view(np.repeat(unit(20), 3, axis=0))
    answer, told, said = select(samples, 30, tmp_path)
    assert len(answer.positions) == 20 and told["distinct"] == 20 and told["radius_after"]["20"] == 0
    assert (answer.positions % 3 == 0).all()  # the lowest id of every three
    assert answer.left_out[1] == f"the same vector as sample {samples[0].id}"
    assert "all 20 rows" in said[0]


def test_a_budget_over_the_pool_keeps_everything(tmp_path):
    answer, _, said = select(view(unit(30)), 100, tmp_path)
    assert sorted(answer.positions) == list(range(30)) and said == []


def test_rows_without_a_vector_are_left_out_and_broken_vectors_are_refused(tmp_path):
    vectors = unit(30)
    vectors[3] = np.nan
    answer, _, _ = select(view(vectors), 10, tmp_path)
    assert answer.left_out == {3: "no vector"} and 3 not in answer.positions
    for broken in (np.nan, np.inf):
        vectors[5, 2] = broken
        samples = view(vectors)
        with pytest.raises(UserError, match=f"sample {samples[5].id} has a NaN or an infinity"):
            select(samples, 10, tmp_path)
    with pytest.raises(UserError, match="none of the 4 rows"):
        select(view(np.full((4, 2), np.nan)), 2, tmp_path)
    with pytest.raises(UserError, match="holds no vectors"):
        select(view(unit(4), score=np.arange(4)), 2, tmp_path, embedding="score")


def test_a_zero_vector_has_a_place_but_no_direction(tmp_path):
    vectors = unit(30)
    vectors[7] = 0
    samples = view(vectors)
    assert len(select(samples, 10, tmp_path)[0].positions) == 10
    with pytest.raises(UserError, match=f"1 vectors are zero.*{samples[7].id}"):
        select(samples, 10, tmp_path, metric="cosine")


def test_cosine_looks_at_directions_only(tmp_path):
    vectors = unit(200)
    scaled = vectors * np.random.default_rng(3).uniform(0.5, 2, (200, 1)).astype(np.float32)
    same, _, _ = select(view(scaled), 40, tmp_path, metric="cosine", init="first")
    assert same.positions.tolist() == k_center(vectors, 40, 0).order.tolist()
    assert select(view(scaled), 40, tmp_path, init="first")[0].positions.tolist() != same.positions.tolist()


def test_what_is_chosen_already_is_started_from_and_not_chosen_again(tmp_path):
    vectors, file = unit(), tmp_path / "chosen.jsonl"
    samples = view(vectors)
    samples.pool.write(file, samples.rows[[5, 50, 300]])
    answer, _, said = select(samples, 40, tmp_path, already=file)
    assert answer.positions.tolist() == k_center(vectors, 40, np.array([5, 50, 300])).order.tolist()
    assert answer.left_out == {at: "already chosen in chosen.jsonl" for at in (5, 50, 300)} and said == []
    assert "chosen already" in answer.reasons[0]
    _, _, said = select(samples[np.arange(100)], 10, tmp_path, already=file)
    assert said == [f"1 of 3 samples of {file} are not in play"]
    with pytest.raises(UserError, match="nothing to start from"):
        select(samples[np.arange(200, 210)], 4, tmp_path, already=file)


def test_the_worst_are_dropped_first(tmp_path):
    quality = np.random.default_rng(5).random(400)
    quality[9] = np.nan
    answer, _, _ = select(view(unit(), good=quality), 40, tmp_path, quality="good", keep_above="0.4")
    assert (quality[answer.positions] >= 0.4).all()
    assert answer.left_out[9] == "no good"
    answer, _, _ = select(view(unit(), good=quality), 40, tmp_path, quality="good", keep_above="25%")
    worst = np.flatnonzero(quality < np.nanquantile(quality, 0.25))
    assert set(worst) <= set(answer.left_out) and len(answer.left_out) == len(worst) + 1
    lower = {"bad": Column("bad", better="lower")}
    answer, _, _ = select(view(unit(), lower, bad=quality), 40, tmp_path, quality="bad", keep_above="25%")
    assert quality[answer.positions].max() <= np.nanquantile(quality, 0.75)
    with pytest.raises(UserError, match="no row is left"):
        select(view(unit(), good=quality), 40, tmp_path, quality="good", keep_above="7")


def test_outliers_are_dropped_and_reported_by_cluster(tmp_path):
    vectors = np.concatenate([unit(300) * 0.1 + 1, unit(3, seed=8) * 9]).astype(np.float32)
    labels = np.r_[np.zeros(150), np.ones(153)]
    answer, told, _ = select(view(vectors, cluster=labels), 20, tmp_path, outliers="1%")
    assert {300, 301, 302} <= set(answer.left_out)
    assert told["outliers"]["removed"] == 4 and told["outliers"]["exact"]
    assert told["outliers"]["by_cluster"]["1"] >= 3
    kept, _, _ = select(view(vectors, cluster=labels), 20, tmp_path)
    assert {300, 301, 302} <= set(kept.positions)  # without it they are the first to be picked
    _, _, said = select(view(unit(8)), 2, tmp_path, outliers="1%")
    assert "too few" in said[0]


SHARES = {"proportional": [40, 8, 2], "equal": [17, 17, 16], "root": [29, 14, 7]}


@pytest.mark.parametrize(("share", "wanted"), SHARES.items())
def test_every_cluster_has_its_share(share, wanted, tmp_path):
    labels = np.r_[np.zeros(400), np.ones(80), np.full(20, 2)]
    vectors = unit(500)
    answer, _, _ = select(view(vectors, cluster=labels), 50, tmp_path, scope_="cluster", share=share)
    counts = np.bincount(labels[answer.positions].astype(int), minlength=3)
    assert np.abs(counts - wanted).max() <= 1 and counts.sum() == 50
    short, _, _ = select(view(vectors, cluster=labels), 13, tmp_path, scope_="cluster", share=share)
    assert short.positions.tolist() == answer.positions[:13].tolist()
    inside = answer.positions[labels[answer.positions] == 1]
    rows = np.flatnonzero(labels == 1)
    assert inside.tolist() == k_center(vectors, len(inside), medoid(vectors, rows), rows).order.tolist()


def test_one_cluster_is_the_whole_pool(tmp_path):
    whole, _, _ = select(view(unit()), 50, tmp_path)
    one, _, _ = select(view(unit(), cluster=np.zeros(400)), 50, tmp_path, scope_="cluster")
    assert one.positions.tolist() == whole.positions.tolist()


def test_a_small_cluster_leaves_its_share_to_the_others(tmp_path):
    labels = np.r_[np.zeros(3), np.ones(397)]
    answer, _, _ = select(view(unit(), cluster=labels), 50, tmp_path, scope_="cluster", share="equal")
    assert len(answer.positions) == 50 and (labels[answer.positions] == 0).sum() == 3


def test_through_the_engine_with_rows_percent_and_cluster_budgets():
    samples = view(unit(), cluster=np.repeat([0, 1], 200))
    assert len(apply(Coreset(), samples, budget="5%")) == 20
    chosen = np.array(apply(Coreset(), samples, budget="3 per cluster"))
    assert np.bincount(samples.column("cluster")[chosen].astype(int)).tolist() == [3, 3]


def test_coverage_is_told_in_every_space(tmp_path):
    samples = view(unit(1000))
    samples.pool.attach(Held(Column("other"), unit(1000, 8, seed=4), index=np.arange(1000)))
    _, told, _ = select(samples, 100, tmp_path)
    assert told["coverage_rows"] == 100 and set(told["coverage_other"]) == set(told["coverage_embedding"])
    own = told["coverage_embedding"]
    assert own["selection"]["largest"] <= own["random"]["largest"]
    assert set(own) == {"selection", "random", "k-means and random"}
    assert "coverage_rows" not in select(view(unit(100)), 10, tmp_path)[1]


def test_coverage_by_hand():
    line = np.arange(6, dtype=np.float32)[:, None]
    assert coverage(line, np.array([0, 4]), np.array([1, 2, 5])) == (4 / 3, 2.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quality": "ifd"}, "go together"),
        ({"keep_above": "1"}, "go together"),
        ({"quality": "ifd", "keep_above": "much"}, "neither a number nor a share"),
        ({"outliers": "3"}, "is a share"),
        ({"outliers": "100%"}, "below 100%"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(ValueError, match=said):
        Coreset(**options)
