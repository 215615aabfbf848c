"""Neighbours: near training images of other families, and priors that are told one by its feature."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import example

from stages import codes as stage
from stages import infiller, samples
from stages import prior as training
from tessera import conditions, neighbours
from tessera import sample as command
from tessera.autoregression.condition import ConditionEmbedding, FeatureEmbedding, set_features
from tessera.core import files, models, seams
from tessera.core.conditioning import NEIGHBOUR, Condition, Conditioning
from tessera.core.contracts import Sampling
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.core.space import CodeSpace
from tessera.evaluation.memorisation import neighbours as borrowed
from tessera.extensions import interpolation
from tessera.playground import samples as playing
from tessera.playground.workspace import Workspace
from tessera.runtime.validation import problems

SPACE = CodeSpace(((1, 2), (2, 2)), (3, 2))
LEARNED = [name for name in seams.names("priors") if name not in ("histogram", "ngram", "uniform")]
TOLD = Conditioning((Condition(NEIGHBOUR, ("cat", "dog", "guitar", "drum"), 1, 0.1, 3),))
FEATURES = torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.5], [1.0, 0.0, 2.0], [3.0, 1.0, 0.0]])  # cat and guitar alike


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(name: str, told: Conditioning = TOLD, space: CodeSpace = SPACE, **values: Any) -> Any:
    module = seams.plugin("priors", name)
    return module.build(example(module.Config, **values), space, told)


# who is near


def by_brute_force(points: Any, families: Any, references: Any, of_references: Any, count: int) -> list[list[int]]:
    found = []
    for point, family in zip(points, families, strict=True):
        far = [
            (float(((point.astype(float) - other.astype(float)) ** 2).sum()), index)
            for index, other in enumerate(references)
            if of_references[index] != family
        ]
        found.append([index for _, index in sorted(far)[:count]])
    return found


@pytest.mark.parametrize("block", [5, 7, 2048])
def test_neighbours_are_those_of_brute_force_in_blocks_of_any_size(monkeypatch, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    random = np.random.default_rng(0)
    train, families = random.normal(size=(40, 3)).astype(np.float32), random.integers(12, size=40).astype(str)
    val, others = random.normal(size=(9, 3)).astype(np.float32), np.array([*"abcdefg", "3", "4"])
    for points, own in ((train, families), (val, others)):
        found = neighbours.nearest_of_other_families(points, own, train, families, 6)
        assert found.tolist() == by_brute_force(points, own, train, families, 6)
        assert (families[found] != own[:, None]).all()


def test_a_twin_is_never_a_neighbour_and_equals_stand_in_their_order():
    train = np.array([[0.0], [0.0], [0.001], [5.0], [5.0]], np.float32)
    families = np.array(["twins", "twins", "twins", "b", "c"])
    found = neighbours.nearest_of_other_families(train, families, train, families, 2)
    assert found.tolist() == [[3, 4], [3, 4], [3, 4], [4, 2], [3, 2]]
    assert found.dtype == np.int32
    with pytest.raises(InputError, match=r"codes\.neighbours\.count: must be at most 2, .* got 3"):
        neighbours.nearest_of_other_families(train, families, train, families, 3)


def test_features_are_the_principal_components_of_standardised_latents(monkeypatch):
    """Against the singular values of the whole matrix, and up to sign; in whatever blocks."""
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    random = np.random.default_rng(0)
    mixing = random.normal(size=(6, 6)) * np.array([1, 5, 0.1, 1, 1, 0])
    train, val = ((random.normal(size=(n, 6)) @ mixing + 3).astype(np.float32) for n in (50, 9))
    found = neighbours.reduced({"train": train, "val": val}, 3)
    deviation = np.where(train.std(0) == 0, 1, train.astype(float).std(0))
    rows, all_rows = ((array - train.astype(float).mean(0)) / deviation for array in (train, val))
    _, values, components = np.linalg.svd(rows, full_matrices=False)
    scale = np.sqrt(np.square(rows @ components[:3].T).mean())
    for own, array in ((rows, found.features["train"]), (all_rows, found.features["val"])):
        np.testing.assert_allclose(abs(array), abs(own @ components[:3].T) / scale, rtol=1e-4, atol=1e-5)
    assert np.square(found.features["train"]).mean() == pytest.approx(1, rel=1e-5)
    assert found.variance == pytest.approx((values[:3] ** 2).sum() / (values**2).sum(), rel=1e-6)
    with pytest.raises(InputError, match=r"codes\.neighbours\.dimensions: must be at most 6, .* got 7"):
        neighbours.reduced({"train": train}, 7)


# the embedding


def test_the_feature_of_an_id_decides_and_not_its_number():
    """Nothing is said by a vector of its own, which no feature gives."""
    embedding = FeatureEmbedding(4, 3, 5)
    embedding.features.copy_(FEATURES)
    found = embedding(torch.tensor([0, 1, 2, 3, 4]))
    expected = FEATURES @ embedding.linear.weight.T + embedding.linear.bias
    torch.testing.assert_close(found[:4], expected)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[4], embedding.nothing)
    assert set(embedding.state_dict()) == {"features", "nothing", "linear.weight", "linear.bias"}
    assert {name for name, _ in embedding.named_parameters()} == {"nothing", "linear.weight", "linear.bias"}


@pytest.mark.parametrize("name", LEARNED)
def test_two_images_with_equal_features_give_equal_predictions(name):
    prior, codes = built(name).double().eval(), torch.zeros(1, 6, dtype=torch.int64)
    blind = prior.log_prob(codes, torch.tensor([[0]]))
    assert torch.equal(blind, prior.log_prob(codes, torch.tensor([[3]])))  # all features are zeros yet
    set_features(prior, FEATURES)
    cat, dog, guitar, nothing = (prior.log_prob(codes, torch.tensor([[i]])) for i in (0, 1, 2, 4))
    assert torch.equal(cat, guitar)
    assert len({of.item() for of in (cat, dog, nothing)}) == 3
    guided = Sampling(guidance={NEIGHBOUR: 2.0})
    given = torch.tensor([[0], [2]]).repeat(4, 1)
    found = prior.sample(8, random(), guided, given)
    assert torch.equal(found, prior.sample(8, random(), guided, torch.zeros_like(given)))
    with pytest.raises(InputError, match=r"shape \(4, 3\), .* got \(4, 2\)"):
        set_features(prior, FEATURES[:, :2])


def test_a_prior_without_neighbours_is_what_it_was():
    """The same weights under the same names, and the same recipe."""
    told = Conditioning((Condition("label", ("a", "b"), 1, 0.1),))
    torch.manual_seed(3)
    table = ConditionEmbedding(told, 8).tables[0]
    torch.manual_seed(3)
    assert torch.equal(table.weight, torch.nn.Embedding(3, 8).weight)
    assert told.facts == {"conditions": [{"name": "label", "names": ("a", "b"), "columns": 1, "dropout": 0.1}]}
    assert TOLD.facts["conditions"][0]["features"] == 3
    assert Conditioning.of_facts(models.plain(TOLD.facts)) == TOLD


@pytest.mark.parametrize("name", ["histogram", "ngram"])
def test_tables_of_classes_refuse_features(name):
    with pytest.raises(InputError, match=f"{name} counts classes and cannot be told a feature, got neighbour; set "):
        built(name)


def test_a_toy_whose_codes_are_noisy_copies_of_the_neighbour_is_learned():
    """Four images with features of two numbers. Each of two codes is the neighbour's, with probability .9. The law p(codes |
    neighbour) is enumerable: .9 or .1 for each code. A neighbour that was never seen, but has the feature of one, has its law."""
    told = Conditioning((Condition(NEIGHBOUR, tuple("abcde"), 1, 0.1, 2),))
    signs = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    prior = built("rnn", told, CodeSpace(((1, 2),), (2,)), dropout=0.0)
    set_features(prior, torch.cat([signs, signs[2:3]]))
    near = torch.arange(4).repeat_interleave(200)
    own = (signs[near] > 0).long()
    codes = torch.where(torch.rand(own.shape, generator=random()) < 0.1, 1 - own, own)
    optimizer = torch.optim.Adam(prior.parameters(), 0.03)
    lost = torch.full_like(near, 5)
    for at in range(60):
        given = torch.where(torch.rand(len(near), generator=random(at)) < 0.2, lost, near)
        optimizer.zero_grad()
        prior.losses(codes, given[:, None])["nll"].backward()
        optimizer.step()
    prior.eval()
    every = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    for image in (0, 1, 2, 3, 4):
        expected = torch.where(every == (signs[image % 4 if image < 4 else 2] > 0).long(), 0.9, 0.1).prod(1)
        found = prior.log_prob(every, torch.full((4, 1), image)).exp()
        torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
    torch.testing.assert_close(prior.log_prob(every, told.nothing(4)).exp(), torch.full((4,), 0.25), rtol=0, atol=0.05)
    drawn = prior.sample(500, random(), conditions=torch.full((500, 1), 1))
    assert (drawn == torch.tensor([0, 1])).double().mean() == pytest.approx(0.9, abs=0.04)


# training


def data_of(near: Any, dropout: float = 0.0) -> training.Data:
    """Codes name their image; the nearest neighbour of each is in `conditions`, as `of_split` gives it."""
    n = len(near)
    own = SimpleNamespace(augmented=0.0, annealing=0.0, training=SimpleNamespace(batch_size=4))
    codes = np.arange(n)[:, None].repeat(2, 1)
    conditioning = Conditioning((Condition(NEIGHBOUR, tuple(map(str, range(n))), 1, dropout, 2),))
    told = {split: near[:, :1].astype(np.int64) for split in ("train", "val")}
    return training.Data({"train": codes, "val": codes}, codes[None][:0], told, conditioning, own, "cpu", None, near)


def test_each_example_is_told_any_of_its_neighbours_alike_and_evaluation_the_nearest():
    near = np.array([[1, 2, 3], [0, 2, 4], [3, 4, 0], [2, 1, 4], [0, 1, 2]], np.int32)
    data, counts = data_of(near), np.zeros((5, 5))
    generator = random()
    for _ in range(2000):
        codes, given, _ = data.batch(np.array([4, 0, 2, 1, 3]), generator, 0.0)
        counts[codes[:, 0], given[:, 0]] += 1
    expected = np.zeros((5, 5))
    np.put_along_axis(expected, near.astype(int), 1 / 3, axis=1)
    assert counts / 2000 == pytest.approx(expected, abs=0.04)
    assert data.rows("train", np.arange(5))[1].tolist() == near[:, :1].tolist()
    assert data.rows("val", np.array([3]))[1].tolist() == [[2]]
    again = data.batch(np.arange(5), random(7), 0.0)[1]
    assert torch.equal(data.batch(np.arange(5), random(7), 0.0)[1], again)
    _, given, _ = data_of(np.tile(near, (400, 1)), dropout=0.25).batch(np.arange(2000), random(), 0.0)
    assert (given == 2000).double().mean() == pytest.approx(0.25, abs=0.03)


# the stages


NEAR = {"count": 3, "grid": 2, "dimensions": 4}


@pytest.fixture
def near_run(tiny_run: Any, raw: dict[str, Any], runtime: Any) -> Run:
    """Codes with neighbours of the images, and a prior that is told one, made by the stages."""
    raw["codes"]["neighbours"] = dict(NEAR)
    raw["prior"]["conditions"][NEIGHBOUR] = 0.1
    raw["prior"]["name"] = "transformer"
    tiny_run()
    run = Run(Params(raw), None, runtime)
    stage.main(run)
    training.main(run)
    return run


def test_the_stage_writes_neighbours_of_other_families_where_they_are_asked_for(near_run):
    run = near_run
    features, families = np.array(run.neighbour_features()), run.table("train")["family"].to_numpy(str)
    assert (features.shape, features.dtype, run.neighbour_count) == ((12, 4), np.float32, 3)
    found = np.array(run.neighbours("train"))
    assert found.tolist() == by_brute_force(features, families, features, families, 3)
    for split, n in (("val", 6), ("test", 5)):
        near, own = run.neighbours(split), run.table(split)["family"].to_numpy(str)
        assert near.shape == (n, 3)
        assert (families[near] != own[:, None]).all()
    assert 0 < files.read_json(files.METRICS / "codes.json")["neighbours"]["variance"] <= 1
    stage.main(run)
    np.testing.assert_array_equal(run.neighbours("train"), found)
    np.testing.assert_array_equal(run.neighbour_features(), features)


def test_without_neighbours_nothing_is_written(tiny_run, raw, runtime):
    tiny_run()
    run = Run(Params(raw), None, runtime)
    stage.main(run)
    assert run.neighbour_count == 0
    assert not (run.folder("codes") / "neighbours").exists()
    assert set(files.read_json(run.folder("codes") / "facts.json")) == {"grids", "codebook_sizes"}
    assert "neighbours" not in files.read_json(files.METRICS / "codes.json")
    raw["prior"]["conditions"][NEIGHBOUR] = 0.1
    with pytest.raises(
        InputError,
        match=r"prior\.conditions\.neighbour: must be none where there are no neighbours, got 0\.1; set .*codes",
    ):
        conditions.wanted(Run(Params(raw), None, runtime))


def test_the_prior_has_the_features_and_the_names_and_is_trained_alike_again(near_run):
    run = near_run
    prior = run.prior()
    told = prior.conditioning[NEIGHBOUR]
    assert told.names == tuple(run.table("train")["name"])
    (embedding,) = (part for part in prior.modules() if isinstance(part, FeatureEmbedding))
    np.testing.assert_array_equal(embedding.features, run.neighbour_features())
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(
            conditions.of_split(run, prior.conditioning, split)[:, 0], run.neighbours(split)[:, 0]
        )
    assert (
        conditions.of_split(run, prior.conditioning, "test", [3, 1]).tolist()
        == run.neighbours("test")[[3, 1], :1].tolist()
    )
    first = prior.state_dict()
    training.main(run)
    again = run.prior().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_training_that_is_resumed_in_the_middle_ends_with_the_same_bits(near_run, monkeypatch):
    whole, saved = near_run.prior().state_dict(), []

    def checkpoint(task: str, pack: Any, force: bool = False) -> None:
        tensors, facts = pack()
        saved.append(({name: tensor.clone() for name, tensor in tensors.items()}, copy.deepcopy(facts)))

    monkeypatch.setattr(near_run.runtime, "checkpoint", checkpoint)
    training.main(near_run)
    middle = saved[len(saved) // 2]
    assert 0 < middle[1]["step"] < saved[-1][1]["step"]
    monkeypatch.setattr(near_run.runtime, "resume", lambda task: middle)
    training.main(near_run)
    resumed = near_run.prior().state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_samples_are_told_any_neighbour_of_a_random_training_image(near_run):
    told, rng = near_run.prior().conditioning, np.random.default_rng(0)
    found = conditions.as_in_training(near_run, told, 6000, rng)
    expected = np.bincount(np.ravel(near_run.neighbours("train")), minlength=12) / 36
    assert np.bincount(found[:, 0], minlength=12) / 6000 == pytest.approx(expected, abs=0.02)
    asked = conditions.as_in_training(near_run, told, 5, rng, {NEIGHBOUR: "picture 7"})
    assert asked[:, 0].tolist() == [7] * 5
    with pytest.raises(
        InputError, match=r"neighbour 'picture77': there is no such neighbour; .* did you mean 'picture 7'"
    ):
        conditions.conditions_of(near_run.prior(), {NEIGHBOUR: ["picture77"]}, 1)


def test_a_sample_is_measured_against_the_image_that_it_was_drawn_for(near_run, raw):
    raw["samples"] |= {"count": 6, "batch_size": 4}
    raw["samples"]["guidance"][NEIGHBOUR] = 2.0
    run = Run(Params(raw), None, near_run.runtime)
    samples.main(run)
    table = run.sample_conditions("samples")
    assert list(table) == [NEIGHBOUR, f"{NEIGHBOUR}_name"]
    told = borrowed.neighbours_of_samples(run)
    assert table[f"{NEIGHBOUR}_name"].tolist() == [run.table("train")["name"][index] for index in told]
    write_features(run, told)
    pairs = borrowed.pairs_of(run, told)
    codes, train, near = run.samples("samples", "codes"), run.codes("train"), run.neighbours("train")
    assert pairs["samples"].equal == pytest.approx([(codes[i] == train[told[i]]).mean() for i in range(6)])
    assert pairs["nearest"].equal == pytest.approx([(train[i] == train[near[i, 0]]).mean() for i in range(12)])
    each = [np.mean([(train[i] == train[j]).mean() for j in near[i]]) for i in range(12)]
    assert pairs["train"].equal == pytest.approx(each)
    assert pairs["samples"].distance == pytest.approx(np.full(6, 1.0))  # see `write_features`
    rows = list(borrowed.rows_of(pairs, "all"))
    found = borrowed.figures(rows)
    assert found["equal_codes"] == pytest.approx(pairs["samples"].equal.mean())
    assert found["distance_ratio"] == pytest.approx(1 / pairs["train"].distance.mean())
    assert borrowed.picture(run, told, 4, 8).ndim == 3


def write_features(run: Run, told: np.ndarray) -> None:
    """Of training images far apart; each sample is at distance 1 from the image that it was drawn for."""
    train = np.arange(12.0)[:, None] * [10.0, 0.0]
    save = {"train": train, "reconstruction_train": train, "samples": train[told] + [0.0, 1.0]}
    for of, array in save.items():
        files.save_array(run.folder("features") / f"{of}.npy", array)
    files.write_json(run.folder("features") / "facts.json", {"shown": [], "groups": []})


def test_nothing_is_measured_of_samples_that_were_drawn_for_none(near_run, raw):
    raw["samples"]["guidance"][NEIGHBOUR] = 0.0
    run = Run(Params(raw), None, near_run.runtime)
    samples.main(run)
    assert run.sample_conditions("samples")[NEIGHBOUR].tolist() == [-1] * 4
    assert borrowed.neighbours_of_samples(run) is None


def test_the_infiller_is_told_the_neighbour_too(near_run):
    infiller.main(near_run)
    (embedding,) = (part for part in near_run.infiller().modules() if isinstance(part, FeatureEmbedding))
    np.testing.assert_array_equal(embedding.features, near_run.neighbour_features())


def test_the_command_draws_for_a_name_from_the_model_alone(near_run, tmp_path, capsys):
    """The data set and its codes may be gone."""
    for stage_name in ("dataset", "codes"):
        for path in Path("artifacts", stage_name).rglob("*.*"):
            path.unlink()
    given = ["-n", "4", "--out", "near.png", "--codes", "near.npz", "--device", "cpu", "--neighbour"]
    assert command.main([*given, "picture 3"]) == 0
    first = np.load("near.npz")["codes"]
    assert command.main([*given, "3"]) == 0
    np.testing.assert_array_equal(np.load("near.npz")["codes"], first)
    assert command.main([*given, "pictur 3"]) != 0
    assert "did you mean 'picture 3'" in capsys.readouterr().err


def test_the_ways_of_interpolation_are_told_the_neighbours_of_both_ends(near_run, tiny):
    run = Run(Params(near_run.params.raw), None, near_run.runtime)
    config = tiny(interpolation.Config, modes=["prior"])
    with torch.no_grad():
        ends = interpolation.loaded(config, run, run.tokenizer(), [("test", 3), ("train", 5)])
    assert ends.conditions.tolist() == [[run.neighbours("test")[3, 0]], [run.neighbours("train")[5, 0]]]


def test_the_playground_samples_with_and_without_the_codes(near_run, raw):
    space = Workspace(Params(raw))
    asked = playing.Asked(Sampling(guidance={NEIGHBOUR: 2.0}), 3)
    (found,) = playing.sampled(space, 4, asked)
    assert {each.said[NEIGHBOUR] for each in found} <= set(space.table("train")["name"])
    picture = space.picture("test:2")
    assert space.told(picture, space.prior().conditioning).tolist() == [[space.neighbours("test")[2, 0]]]
    (asked_for,) = playing.sampled(space, 2, asked._replace(conditions={NEIGHBOUR: "picture 4"}))
    assert {each.said[NEIGHBOUR] for each in asked_for} == {"picture 4"}
    shutil.rmtree(space.folder("codes"))
    (found,) = playing.sampled(space, 2, asked)
    assert {each.said[NEIGHBOUR] for each in found} == {""}
    assert space.told(picture, space.prior().conditioning).tolist() == [[12]]


def test_impossible_values_are_refused(raw):
    for values in ({"count": -1}, {"count": 257}, {"grid": 0}, {"dimensions": 0}):
        with pytest.raises(ValueError, match=next(iter(values))):
            neighbours.Neighbours.model_validate({**raw["codes"]["neighbours"], **values})


@pytest.mark.parametrize("name", ["histogram", "ngram"])
def test_a_prior_that_counts_is_told_no_neighbour(raw, name):
    raw["prior"]["name"], raw["prior"]["conditions"][NEIGHBOUR], raw["codes"]["neighbours"]["count"] = name, 0.1, 2
    (line,) = problems(raw)
    assert line.startswith(f"prior.conditions.neighbour: must be none under prior.name {name}, which counts classes")


def test_names_of_images_are_as_in_the_table(near_run):
    table = conditions.described(near_run.prior().conditioning, np.array([[2], [12]]))
    expected = pd.DataFrame({NEIGHBOUR: [2, -1], f"{NEIGHBOUR}_name": ["picture 2", ""]})
    pd.testing.assert_frame_equal(table, expected)
