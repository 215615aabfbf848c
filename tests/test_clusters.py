"""Clusters of images as labels: what they are of, and that they are left out unless they are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stages import codes as stage
from stages import infiller
from tessera import conditions
from tessera.core import files
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.runtime.validation import problems


def blobs(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around centres far apart, and which centre each is of."""
    random = np.random.default_rng(seed)
    of = np.repeat(np.arange(len(sizes)), sizes)
    return 100.0 * np.eye(len(sizes), 5)[of] + random.normal(size=(len(of), 5)), of


def test_clusters_are_numbered_by_their_size_and_others_belong_to_the_nearest_centre():
    train, of = blobs([5, 20, 9])
    val, of_val = blobs([3, 2, 4], seed=1)
    shuffled = np.random.default_rng(2).permutation(len(train))
    found = stage.clustered({"train": train[shuffled], "val": val}, 3, seed=0)
    number = np.array([2, 0, 1])  # of each centre
    np.testing.assert_array_equal(found["train"], number[of[shuffled]])
    np.testing.assert_array_equal(found["val"], number[of_val])
    again = stage.clustered({"train": train[shuffled], "val": val}, 3, seed=0)
    np.testing.assert_array_equal(again["train"], found["train"])


def test_a_feature_counts_in_units_of_its_own_spread():
    random = np.random.default_rng(0)
    side = random.integers(2, size=60)
    train = np.stack([1e-3 * (side + 0.01 * random.normal(size=60)), 50 * random.normal(size=60)], axis=1)
    train = np.concatenate([train, train[:, :1], train[:, :1]], axis=1)  # most features tell the sides apart
    found = stage.clustered({"train": train}, 2, seed=0)["train"]
    assert len(set(zip(found.tolist(), side.tolist(), strict=True))) == 2


def test_more_clusters_than_different_images_are_refused():
    train = np.repeat(np.eye(3), 4, axis=0)
    with pytest.raises(InputError, match=r"codes\.clusters\.count: must be at most 3, .* got 4"):
        stage.clustered({"train": train}, 4, seed=0)


def test_centres_of_a_large_set_are_sought_among_some_of_it_and_all_of_it_is_assigned(monkeypatch):
    import sklearn.cluster

    fitted: list[int] = []

    class Counted(sklearn.cluster.KMeans):
        def fit(self, points):
            fitted.append(len(points))
            return super().fit(points)

    monkeypatch.setattr(sklearn.cluster, "KMeans", Counted)
    monkeypatch.setattr(stage, "MOST", 20)
    monkeypatch.setattr(stage, "BLOCK", 64)
    train, of = blobs([200, 500, 300])
    found = stage.clustered({"train": train, "val": train[:130]}, 3, seed=0)
    assert fitted == [60]
    np.testing.assert_array_equal(found["train"], np.array([2, 0, 1])[of])
    np.testing.assert_array_equal(found["val"], found["train"][:130])


def coded(raw: dict[str, Any], runtime: Any, **values: int) -> Run:
    clusters = {**raw["codes"]["clusters"], **values}
    run = Run(Params({**raw, "codes": {**raw["codes"], "clusters": clusters}}), None, runtime)
    stage.main(run)
    return run


def test_images_have_clusters_where_they_are_asked_for(tiny_run, raw, runtime):
    tiny_run()
    run = coded(raw, runtime, count=3)
    assert run.cluster_count == 3
    assert [len(run.clusters(split)) for split in ("train", "val", "test")] == [12, 6, 5]
    sizes = np.bincount(run.clusters("train"), minlength=3)
    assert (sizes[0], sizes[2]) == (sizes.max(), sizes.min())
    said = files.read_json(files.METRICS / "codes.json")["clusters"]
    assert said == {"smallest": sizes.min(), "largest": sizes.max()}
    first = run.clusters("train").copy()
    np.testing.assert_array_equal(coded(raw, runtime, count=3).clusters("train"), first)
    assert run.space.length == run.codes("val").shape[1]


def test_a_small_set_has_fewer_clusters_and_its_prior_is_told_these(tiny_run, raw, runtime, capsys):
    """As many as the default asks for are more than there are images; fifty images are enough to go through all stages."""
    tiny_run()
    raw["prior"]["conditions"]["cluster"] = 0.1
    run = coded(raw, runtime, count=64)
    assert "codes.clusters.count: 3 instead of 64, since the train split has 12 images" in capsys.readouterr().out
    assert run.cluster_count == 3
    assert conditions.wanted(run)["cluster"].names == ("0", "1", "2")
    assert set(run.clusters("train").tolist()) == {0, 1, 2}
    assert [stage.fewer_clusters(*numbers) for numbers in ((0, 9), (5, 3), (64, 256), (64, 255))] == [0, 1, 64, 63]


def test_without_clusters_the_folder_is_what_it_was(tiny_run, raw, runtime):
    tiny_run()
    run = coded(raw, runtime)
    assert run.cluster_count == 0
    assert {path.name for path in run.folder("codes").iterdir() if path.suffix == ".npy"} == {
        "train.npy", "val.npy", "test.npy", "augmented.npy",
    }  # fmt: skip
    assert not (run.folder("codes") / "clusters").exists()
    assert set(files.read_json(run.folder("codes") / "facts.json")) == {"grids", "codebook_sizes"}
    assert "clusters" not in files.read_json(files.METRICS / "codes.json")


def test_features_are_latents_averaged_to_the_grid(tiny_run, raw, runtime):
    tiny_run()
    run = Run(Params(raw), None, runtime)
    found = stage.pooled_latents(run.tokenizer(), run, "val", 1)
    x = torch.from_numpy(np.array(run.images("val"))).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        (z,) = run.tokenizer().latents(x)
    np.testing.assert_allclose(found, z.mean((2, 3)), atol=1e-5)


def test_a_prior_is_told_the_cluster(tiny_run, raw, runtime):
    raw["codes"]["clusters"]["count"] = 3
    raw["prior"]["conditions"]["cluster"] = 0.1
    run = tiny_run()
    with pytest.raises(
        InputError, match=r"prior\.conditions\.cluster: must be none where there are no clusters, got 0\.1"
    ):
        conditions.wanted(run)
    stage.main(run)
    told = conditions.wanted(run)
    (part,) = told
    assert (part.name, part.names, part.columns) == ("cluster", ("0", "1", "2"), 1)
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(conditions.of_split(run, told, split)[:, 0], run.clusters(split))


def test_of_a_hidden_part_the_cluster_of_the_whole_says_nothing(tiny_run, raw, runtime):
    """Inpainting and variations would see what they are to guess; the label stays known."""
    raw["codes"]["clusters"]["count"] = 3
    raw["prior"]["conditions"] |= {"cluster": 0.1, "label": 0.1}
    run = tiny_run()
    stage.main(run)
    told = conditions.wanted(run)
    whole, hidden = (dict(zip(told.names, told.split(found(run, told, "test")), strict=True)) for found in
                     (conditions.of_split, conditions.of_hidden))  # fmt: skip
    np.testing.assert_array_equal(hidden["label"], whole["label"])
    assert (hidden["cluster"] == 3).all()
    assert (whole["cluster"] < 3).all()
    data = infiller.Data(run, told.always())
    assert (data.conditions["train"][:, told.names.index("cluster")] == 3).all()


@pytest.mark.parametrize("name", ["cluster", "neighbour"])
def test_a_prior_learns_to_do_without_what_is_made_of_codes(raw, name):
    raw["prior"]["conditions"][name] = 0.0
    assert any(f"prior.conditions.{name}: must be none" in line for line in problems(raw))


@pytest.mark.parametrize(("name", "made"), [("cluster", "clusters"), ("neighbour", "neighbours")])
def test_what_the_codes_are_not_asked_for_no_prior_can_be_told(raw, name, made):
    raw["prior"]["conditions"][name], raw["samples"]["guidance"][name] = 0.1, 2.0
    raw["codes"][made]["count"] = 0
    (line,) = problems(raw)
    assert line.startswith(f"prior.conditions.{name}: must be none while codes.{made}.count is 0, got 0.1")
    assert line.endswith(f"or it to none and samples.guidance.{name} to 1")
    raw["codes"][made]["count"] = 3
    assert problems(raw) == []


@pytest.mark.parametrize(("asked", "good"), [("", True), ("2", True), ("3", False), ("a", False)])
def test_a_cluster_that_samples_are_drawn_for_is_there(raw, asked, good):
    raw["codes"]["clusters"]["count"], raw["prior"]["conditions"]["cluster"] = 3, 0.1
    raw["samples"]["conditions"]["cluster"] = asked
    found = problems(raw)
    wanted = (
        "samples.conditions.cluster: must be empty or a number from 0 to 2, as many clusters as codes.clusters.count says, got "
        f"{asked!r}"
    )
    assert found == ([] if good else [wanted])
