"""The ladder of damage: codes that are exchanged in a known way, and a toy tokenizer whose pixels are its codes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import example

from tessera import ladder
from tessera.core.space import CodeSpace
from tessera.evaluation import ladder as measure_of_ladder
from tessera.evaluation.ladder import TRAIN, Measured, headline, rung
from tessera.features import kernel
from tessera.images import arrays
from tessera.two_sample import Accuracy, accuracy, cross_fitted

SPACE = CodeSpace(((8, 8),), (4,))
FIVE = ("halves", "quadrants", "blocks", "single_codes", "shuffled")
EXCHANGED = FIVE[:4]


def space_of(*grids: tuple[int, int]) -> CodeSpace:
    return CodeSpace(grids, (4,) * len(grids))


def marked(space: CodeSpace, n: int = 24, groups: int = 2) -> ladder.Images:
    """Images whose codes say where they are from: code t of image i is i T + t. Families of two, in groups."""
    codes = np.arange(n * space.length).reshape(n, space.length)
    index = np.arange(n)
    names, families = (np.array([f"{kind} {i}" for i in numbers]) for kind, numbers in
                       (("image", index), ("family", index // 2)))  # fmt: skip
    return ladder.Images(codes, names, families, index // 2 % groups)


def origin(codes: np.ndarray, space: CodeSpace) -> tuple[np.ndarray, np.ndarray]:
    """The image and the place that each of the marked codes is from."""
    return codes // space.length, codes % space.length


def permuted(images: ladder.Images, order: np.ndarray) -> ladder.Images:
    return ladder.Images(*(array[order] for array in images))


# which rungs there are


@pytest.mark.parametrize(
    ("grids", "expected"),
    [
        ([(8, 8)], FIVE),
        ([(7, 7)], FIVE),
        ([(4, 6)], FIVE),
        ([(8, 8), (8, 8)], FIVE),
        ([(4, 4), (8, 8)], FIVE),
        ([(4, 4)], ("halves", "quadrants", "single_codes", "shuffled")),  # its blocks are its quadrants
        ([(3, 3)], ("halves", "quadrants", "single_codes", "shuffled")),  # so are these, of unequal sides
        ([(2, 2)], ("halves", "quadrants", "shuffled")),  # its single codes are its quadrants
        ([(1, 8)], ("halves", "blocks", "single_codes", "shuffled")),  # its quadrants are its halves
        ([(1, 2)], ("halves", "shuffled")),
        ([(1, 1)], ()),
        ([(1, 1), (1, 1)], ()),
        ([], ()),
    ],
)
def test_a_rung_with_the_regions_of_the_one_before_is_left_out(grids, expected):
    assert ladder.rungs(space_of(*grids)) == expected


def test_where_no_code_can_be_exchanged_there_is_no_ladder_and_a_reason():
    families = np.array(list("abcdef"))
    assert "one code per grid" in ladder.why_not(space_of((1, 1)), families)
    assert "of 3 families, and 6 are needed" in ladder.why_not(SPACE, np.array(["a", "b", "b", "c"]))
    assert ladder.why_not(SPACE, families) is None


# what is exchanged


@pytest.mark.parametrize(
    ("grids", "rung"),
    [
        (grids, rung)
        for grids in ([(8, 8)], [(7, 7)], [(4, 6)], [(4, 4), (8, 8)], [(8, 8), (8, 8)], [(3, 3)])
        for rung in ladder.rungs(space_of(*grids))[:-1]
    ],
)
def test_codes_come_from_another_family_of_the_same_group_and_keep_their_place(grids, rung):
    space = space_of(*grids)
    images = marked(space)
    codes = ladder.damaged(images, space, rung, 0, 0).codes
    image, place = origin(codes, space)
    assert (place == np.arange(space.length)).all()
    at, t = np.nonzero(image != np.arange(len(codes))[:, None])
    assert len(at)
    assert (images.families[image[at, t]] != images.families[at]).all()
    assert (images.groups[image[at, t]] == images.groups[at]).all()


@pytest.mark.parametrize("rung", FIVE)
def test_all_codes_of_an_image_come_from_its_side_so_that_the_sides_have_none_in_common(rung):
    images = marked(SPACE)
    codes, side = ladder.damaged(images, SPACE, rung, 0, 0)
    image, _ = origin(codes, SPACE)
    assert (side[image] == side[:, None]).all()
    assert not set(codes[side == 0].flat) & set(codes[side == 1].flat)
    for each in np.unique(images.families):
        assert len(set(side[images.families == each])) == 1


@pytest.mark.parametrize("sizes", [(1,) * 12, (9, 1, 1, 1), (5, 3, 2, 2, 2, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("groups", [1, 3])
def test_sides_have_as_many_families_and_where_these_allow_as_many_images(sizes, groups):
    families = np.repeat(np.arange(len(sizes)), sizes)
    names = np.array([f"image {i}" for i in range(len(families))])
    images = ladder.Images(np.zeros((len(names), 64), int), names, families, families % groups)
    side = ladder.sides(images, 0, 0)
    for group in np.unique(images.groups):
        found = [len(np.unique(families[(side == one) & (images.groups == group)])) for one in (0, 1)]
        assert abs(found[0] - found[1]) <= 1
    assert abs(np.subtract(*(len(np.unique(families[side == one])) for one in (0, 1)))) <= 1
    if groups == 1:
        assert abs(int((side == 0).sum()) - int((side == 1).sum())) <= max(sizes)
    if len(sizes) == 12:
        assert len({tuple(ladder.sides(images, 0, number)) for number in range(5)}) == 5  # repetitions differ


def test_a_family_of_all_groups_leaves_no_side_short():
    families = np.array(list("AABACADAEAFAGAHA"))
    names = np.array([f"image {i}" for i in range(16)])
    images = ladder.Images(np.arange(16 * 64).reshape(16, 64), names, families, np.arange(16) // 2)
    side = ladder.sides(images, 0, 0)
    assert [len(np.unique(families[side == one])) for one in (0, 1)] == [4, 4]
    ladder.damaged(images, SPACE, "halves", 0, 0)


def test_a_family_of_several_groups_has_one_side():
    images = marked(SPACE)._replace(groups=np.arange(24) % 2)
    side = ladder.sides(images, 0, 0)
    assert (side[::2] == side[1::2]).all()


def test_kid_of_damaged_images_is_unbiased_also_where_all_have_many_partners():
    """Pixels are codes and codes are independent, so that damage changes nothing: KID is 0 in the mean. With pairs that share a
    partner it would be 1/n of the kernel's values, many standard deviations above."""
    found, biased = [], []
    for trial in range(40):
        codes = np.random.default_rng(trial).integers(0, 2, (40, 64))
        names = np.array([f"image {i}" for i in range(40)])
        images = ladder.Images(codes, names, names, np.zeros(40, int))
        damage, side = ladder.damaged(images, SPACE, "single_codes", trial, 0)
        related = side[:, None] == side
        a, b = (np.eye(2)[of].reshape(40, -1) * 4 for of in (damage, codes))
        ones = np.ones((1, 40))
        found.append(kernel.estimate(kernel.pairs(a, b, (names, names), related, related), ones, ones)[0])
        biased.append(kernel.estimate(kernel.pairs(a, b, (names, names), np.eye(40, dtype=bool)), ones, ones)[0])
    deviation = np.std(found) / 40**0.5
    assert abs(np.mean(found)) < 3 * deviation
    assert abs(np.mean(biased)) > 6 * deviation


@pytest.mark.parametrize(("grid", "rung", "exchanged"), [
    ((8, 8), "halves", {32}), ((8, 8), "quadrants", {32}), ((8, 8), "blocks", {32}), ((8, 8), "single_codes", {32}),
    ((7, 7), "halves", {21, 28}), ((7, 7), "single_codes", {24}), ((7, 7), "quadrants", {21, 24, 25, 28}),
    ((2, 2), "halves", {2}), ((2, 2), "quadrants", {2}), ((1, 8), "halves", {4}),
])  # fmt: skip
def test_half_of_the_codes_are_exchanged_or_as_near_to_half_as_odd_sides_allow(grid, rung, exchanged):
    space = space_of(grid)
    image, _ = origin(ladder.damaged(marked(space, 60), space, rung, 0, 0).codes, space)
    assert set((image != np.arange(60)[:, None]).sum(1)) == exchanged


def test_halves_are_of_all_four_sides_and_of_one_partner():
    image, _ = origin(ladder.damaged(marked(SPACE, 60), SPACE, "halves", 0, 0).codes, SPACE)
    foreign = (image != np.arange(60)[:, None]).reshape(60, 8, 8)
    sides = {tuple(which.ravel()[[0, 7, 56, 63]]) for which in foreign}  # corners
    assert len(sides) == 4
    assert all(len(set(found)) == 2 for found in image)


@pytest.mark.parametrize(("rung", "side"), [("quadrants", 4), ("blocks", 2), ("single_codes", 1)])
def test_each_region_has_a_partner_of_its_own(rung, side):
    image, _ = origin(ladder.damaged(marked(SPACE, 60), SPACE, rung, 0, 0).codes, SPACE)
    regions = image.reshape(60, 8 // side, side, 8 // side, side).swapaxes(2, 3).reshape(60, -1, side * side)
    assert (regions == regions[:, :, :1]).all()  # a region is exchanged as a whole
    regions = regions[:, :, 0]
    own = (regions == np.arange(60)[:, None]).sum(1)
    assert set(own) == {regions.shape[1] // 2}
    partners = np.array([len(set(found)) - 1 for found in regions])
    assert partners.mean() > 1.5  # one partner for all would be 1


@pytest.mark.parametrize("rung", EXCHANGED)
def test_every_image_lends_as_often_as_it_borrows(rung):
    """As partner of one other for each region."""
    image, _ = origin(ladder.damaged(marked(SPACE, 60), SPACE, rung, 0, 0).codes, SPACE)
    lent = np.bincount(image[image != np.arange(60)[:, None]], minlength=60)
    assert (lent == 32).all()  # half of its codes


def test_a_family_of_most_images_still_has_partners_of_other_families():
    images = marked(SPACE, 60, 1)._replace(families=np.array(["large"] * 40 + [f"family {i // 2}" for i in range(20)]))
    image, _ = origin(ladder.damaged(images, SPACE, "halves", 0, 0).codes, SPACE)
    foreign = image != np.arange(60)[:, None]
    assert foreign.any(1).all()
    assert (image[:40][foreign[:40]] >= 40).all()
    assert len(set(image[:40][foreign[:40]])) > 5, "many lend"


def test_rungs_of_one_repetition_have_partners_in_common():
    """So that they differ by their damage alone; those of another repetition are others."""
    images = marked(SPACE, 60)
    codes = {rung: ladder.damaged(images, SPACE, rung, 0, 0).codes for rung in EXCHANGED[:3]}
    codes["again"] = ladder.damaged(images, SPACE, "quadrants", 0, 1).codes
    partners = {}
    for name, found in codes.items():
        image, _ = origin(found, SPACE)
        partners[name] = [set(row) - {at} for at, row in enumerate(image)]
    assert all(one <= two <= three for one, two, three in
               zip(partners["halves"], partners["quadrants"], partners["blocks"], strict=True))  # fmt: skip
    assert np.mean([one <= two for one, two in zip(partners["halves"], partners["again"], strict=True)]) < 0.5


def test_shuffled_codes_are_all_there_at_other_places():
    images = marked(SPACE)
    codes = ladder.damaged(images, SPACE, "shuffled", 0, 0).codes
    np.testing.assert_array_equal(np.sort(codes, 1), images.codes)
    _, place = origin(codes, SPACE)
    assert (place != np.arange(64)).mean() > 0.9
    assert len(set(map(tuple, place))) == len(codes)  # each image has a permutation of its own


@pytest.mark.parametrize("rung", EXCHANGED[:3])
def test_levels_exchange_the_same_region_of_the_image(rung):
    """Regions of 2x2 fine codes and larger hold whole coarse codes."""
    space = space_of((4, 4), (8, 8))
    coarse, fine = space.split(origin(ladder.damaged(marked(space), space, rung, 0, 0).codes, space)[0])
    np.testing.assert_array_equal(coarse.repeat(2, 1).repeat(2, 2), fine)


@pytest.mark.parametrize("rung", FIVE)
def test_depths_are_exchanged_and_shuffled_together(rung):
    space = space_of((4, 4), (8, 8), (8, 8))
    image, place = origin(ladder.damaged(marked(space), space, rung, 0, 0).codes, space)
    (_, *images), (_, first, second) = space.split(image), space.split(place)
    np.testing.assert_array_equal(*images)
    np.testing.assert_array_equal(first + 64, second)


def test_where_a_group_is_one_family_partners_are_of_other_groups():
    images = marked(SPACE, 10)._replace(groups=np.array([0, 0, 1, 1, 1, 1, 1, 1, 1, 1]))
    image, _ = origin(ladder.damaged(images, SPACE, "blocks", 0, 0).codes, SPACE)
    foreign = image != np.arange(10)[:, None]
    assert foreign.any(1).all()
    assert (image[:2][foreign[:2]] > 1).all()
    assert (image[2:] > 1).all()


# order and seeds


@pytest.mark.parametrize("rung", FIVE)
def test_images_in_another_order_give_the_same_damage_in_that_order(rung):
    images, order = marked(SPACE), np.random.default_rng(0).permutation(24)
    codes, side = ladder.damaged(images, SPACE, rung, 3, 1)
    again = ladder.damaged(permuted(images, order), SPACE, rung, 3, 1)
    np.testing.assert_array_equal(again.codes, codes[order])
    np.testing.assert_array_equal(again.side, side[order])


@pytest.mark.parametrize("rung", FIVE)
def test_seed_and_repetition_alone_decide(rung):
    images = marked(SPACE)
    first = ladder.damaged(images, SPACE, rung, 0, 0).codes
    np.random.seed(1)
    np.testing.assert_array_equal(ladder.damaged(images, SPACE, rung, 0, 0).codes, first)
    assert (ladder.damaged(images, SPACE, rung, 0, 1).codes != first).any()
    assert (ladder.damaged(images, SPACE, rung, 1, 0).codes != first).any()
    np.testing.assert_array_equal(images.codes, marked(SPACE).codes)  # they are not changed


# the rung


def constant(kid: float, resampled: Any = None) -> Measured:
    values = np.full(100, kid) if resampled is None else np.asarray(resampled, float)
    return Measured(kid, values, values, Accuracy(0.75, 0.7, 0.8), 10)


def scale_of(*kids: float) -> dict[str, Measured]:
    return {f"rung {at}": constant(kid) for at, kid in enumerate(kids, 1)}


@pytest.mark.parametrize(("kid", "expected"), [
    (-0.1, 0), (0, 0), (0.05, 0.5), (0.1, 1), (0.15, 1.5), (0.2, 2), (0.3, 2.5), (0.4, 3), (0.5, 3),
])  # fmt: skip
def test_a_rung_is_linear_in_kid_between_neighbouring_rungs(kid, expected):
    assert rung(constant(kid), scale_of(0.1, 0.2, 0.4)) == pytest.approx((expected,) * 3)


def test_a_rungs_interval_resamples_the_ladder_and_the_set_together():
    """Where both are twice as far in a resampling, the rung is the same; where only the set is, it is not."""
    factor = np.linspace(0.5, 2, 100)
    rungs = {str(kid): constant(kid, kid * factor) for kid in (0.1, 0.2, 0.4)}
    assert rung(constant(0.15, 0.15 * factor), rungs) == pytest.approx((1.5, 1.5, 1.5))
    alone = rung(constant(0.15, 0.15 * factor), scale_of(0.1, 0.2, 0.4))
    assert alone.low == pytest.approx(0.8, abs=0.05)
    assert alone.high == pytest.approx(2.46, abs=0.05)


def test_a_ladder_out_of_order_gives_no_rung():
    found, rows = headline(scale_of(0.1, 0.3, 0.2), {"samples": constant(0.15), TRAIN: constant(0.05)}, "kid")
    assert found == {"in_order": False, "ordered": False, "kid": 0.15, "accuracy": 0.75, "train_kid": 0.05,
                     "train_accuracy": 0.75}  # fmt: skip
    assert [row["said"] for row in rows] == ["no rung"] * 2
    assert not any("rung" in row for row in rows)


def test_a_ladder_whose_first_rung_is_no_farther_than_real_images_is_out_of_order():
    found, _ = headline(scale_of(-0.01, 0.1), {"samples": constant(0.05)}, "kid")
    assert found["in_order"] == 0


def test_ordered_means_that_each_paired_difference_is_above_zero():
    noise = np.random.default_rng(0).normal(0, 1, 400)
    together = {"1": constant(1, 1 + noise / 9), "2": constant(2, 2 + noise)}  # wide intervals, but of one cause
    apart = {"1": constant(1, 1 - noise), "2": constant(2, 2 + noise)}
    assert headline(together, {}, "kid")[0] == {"in_order": True, "ordered": False}  # half of the 2nd are below the 1st
    assert headline({"1": constant(1, 1 + noise / 9), "2": constant(2, 2 + noise / 9)}, {}, "kid")[0]["ordered"]
    assert headline(apart, {}, "kid")[0] == {"in_order": True, "ordered": False}


def test_past_the_last_rung_the_table_says_so():
    found, rows = headline(scale_of(0.1, 0.2), {"samples": constant(0.9)}, "kid_x")
    assert (found["rung"], rows[0]["said"]) == (2, ">2")
    assert found["kid_x"] == rows[0]["kid_x"] == 0.9


# the measure, on a tokenizer whose pixels are its codes


class Toy:
    """Codes 0 to 15 are the grey levels of 8x8 pixels. The scorer sees how alike pixels are at distances 1, 2 and 4."""

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.reshape(-1, 1, 8, 8).float() / 7.5 - 1

    @staticmethod
    def scorer(x: torch.Tensor) -> torch.Tensor:
        alike = [(x[..., d:, :] * x[..., :-d, :], x[..., d:] * x[..., :-d]) for d in (1, 2, 4)]
        return torch.stack([product.mean((1, 2, 3)) for pair in alike for product in pair], 1)


def smooth(n: int, seed: int) -> np.ndarray:
    """Codes [n,64] of smooth images: one wave of random direction and phase, as dark as it is bright."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:8, :8] * np.pi / 4
    waves = [rows, columns, rows + columns, rows - columns]
    phases = generator.uniform(0, 2 * np.pi, n)
    images = [np.sin(waves[which] + phase) for which, phase in zip(generator.integers(0, 4, n), phases, strict=True)]
    return np.rint(7.5 + 7.5 * np.array(images)).astype(np.int32).reshape(n, 64)


class ToyRun:
    """What the measure asks of `tessera.core.run.Run`. `samples` are test-like images on the rung `damage`."""

    def __init__(self, damage: str = "blocks", samples: np.ndarray | None = None, n: int = 64) -> None:
        self.params, self.device, self.distance, self.space = SimpleNamespace(seed=0), "cpu", "fd_toy", SPACE
        self.n, self.all_codes = n, {split: smooth(n, seed) for seed, split in enumerate(("train", "val", "test"))}
        if samples is None:
            index = np.arange(n)
            names = np.array([f"sample {i}" for i in index])
            samples = ladder.damaged(ladder.Images(smooth(n, 9), names, names, index * 0), SPACE, damage, 0, 0).codes
        self.sampled = {"samples": samples, "baseline": np.random.default_rng(0).integers(0, 16, (n, 64))}
        self.sample_sets = tuple(self.sampled)
        self.order = {split: np.arange(n) for split in ("train", "val", "test")}
        self.half = np.arange(n) // 2 % 2

    def tokenizer(self) -> Any:
        return Toy()

    def scorer(self) -> Any:
        return Toy.scorer

    def codes(self, split: str) -> np.ndarray:
        return self.all_codes[split][self.order[split]]

    def samples(self, of: str = "samples") -> np.ndarray:
        return arrays.decoded(Toy(), self.sampled[of], 64)

    def table(self, split: str) -> pd.DataFrame:
        return pd.DataFrame({"name": [f"{split} {i}" for i in range(self.n)]}).iloc[self.order[split]]

    def split(self, of: str) -> str:
        return {"reconstruction": "test"}.get(of, of.removeprefix("reconstruction_"))

    def features(self, of: str) -> np.ndarray:
        codes = self.sampled[of] if of in self.sampled else self.codes(self.split(of))
        return arrays.mapped(Toy.scorer, arrays.decoded(Toy(), codes, 64), 64)

    def families(self, of: str) -> np.ndarray:
        if of in self.sampled:
            return np.array([f"{of}/{i}" for i in range(len(self.sampled[of]))])
        return np.array([f"{self.split(of)} {i // 2}" for i in self.order[self.split(of)]])

    def groups(self, of: str) -> dict[str, np.ndarray]:
        half = self.half[: len(self.sampled[of])] if of in self.sampled else self.half[self.order[self.split(of)]]
        return {"all": np.arange(len(half)), "odd": np.flatnonzero(half == 1), "even": np.flatnonzero(half == 0)}


def report_of(run: Any, **values: Any) -> Any:
    config = example(measure_of_ladder.Config, count=1000, batch_size=256, smallest=20, **values)
    return measure_of_ladder.measure(config, run)


@pytest.fixture(scope="module")
def report() -> Any:
    return report_of(ToyRun())


def test_known_damage_is_in_its_known_order_for_every_split_and_group(report):
    rungs = report.tables["rungs"]
    assert set(report.metrics) == {"val", "test"}
    for split in ("val", "test"):
        assert set(report.metrics[split]) == {"all", "odd", "even"}
        for group, found in report.metrics[split].items():
            own = rungs[(rungs["split"] == split) & (rungs["group"] == group)]
            assert tuple(own["rung"]) == FIVE
            assert own["kid_toy"].is_monotonic_increasing
            assert own["difference"].to_numpy() == pytest.approx(np.diff(own["kid_toy"], prepend=0))
            assert found["in_order"] == 1
            assert found["ordered"] == (own["difference_low"] > 0).all()
        assert report.metrics[split]["all"]["ordered"] == 1
        assert rungs["accuracy"].max() > 0.95


@pytest.mark.parametrize(("damage", "expected"), [("quadrants", 2), ("single_codes", 4)])
def test_samples_of_known_damage_stand_on_its_rung(damage, expected):
    found = report_of(ToyRun(damage), repetitions=4).metrics["test"]["all"]
    assert found["rung"] == pytest.approx(expected, abs=0.6)
    assert found["rung_low"] < found["rung"] < found["rung_high"]


def test_real_training_images_stand_below_the_first_rung_and_independent_codes_past_the_others(report):
    sets = report.tables["sets"].set_index(["split", "group", "set"])
    for split in ("val", "test"):
        found = report.metrics[split]["all"]
        assert found["train_rung"] < 1
        assert sets.loc[(split, "all", "baseline"), "rung"] > 4
        for key, column in (("rung", "rung"), ("kid_toy", "kid_toy"), ("accuracy", "accuracy")):
            assert found[key] == sets.loc[(split, "all", "samples"), column]
            assert found[f"train_{key}"] == sets.loc[(split, "all", TRAIN), column]


def test_images_by_other_vendors_take_no_part(report):
    class Several(ToyRun):
        """The first 64 of 96 images of each split are compared with."""

        def groups(self, of: str) -> dict[str, np.ndarray]:
            members = super().groups(of)
            return members if of in self.sampled else {name: rows[rows < 64] for name, rows in members.items()}

    run, one = Several(n=96), ToyRun()
    run.sampled = one.sampled
    for split, codes in one.all_codes.items():
        run.all_codes[split] = np.concatenate([codes, np.zeros((32, 64), np.int32)])
    assert report_of(run).metrics == report.metrics


def test_kid_is_named_after_the_scorer_and_kid_is_inceptions_alone(report):
    run = ToyRun()
    run.distance = "fid"
    assert "kid" not in report.metrics["test"]["all"]
    assert "kid" in report_of(run, repetitions=1).metrics["test"]["all"]


def test_the_order_of_the_images_does_not_matter(report):
    run = ToyRun()
    run.order["test"] = np.random.default_rng(0).permutation(run.n)
    again = report_of(run)
    for group, found in report.metrics["test"].items():
        assert again.metrics["test"][group] == pytest.approx(found, rel=1e-4, abs=1e-4)


def test_the_seed_decides(report):
    run = ToyRun()
    assert report_of(run).metrics == report.metrics
    run.params.seed = 1
    assert report_of(run).metrics["test"]["all"]["rung"] != report.metrics["test"]["all"]["rung"]


def test_a_set_with_too_few_images_of_a_group_is_named_and_not_measured():
    run = ToyRun()
    run.half[:] = 0  # of the samples alone; real images were halved before
    real, run.groups = ToyRun(), lambda of: ToyRun.groups(run, of) if of in run.sampled else real.groups(of)
    report = report_of(run)
    rows = report.tables["sets"].set_index(["split", "group", "set"])
    assert rows.loc[("test", "odd", "samples"), "said"] == "too few images"
    assert np.isnan(rows.loc[("test", "odd", "samples"), "kid_toy"])
    found = report.metrics["test"]["odd"]
    assert not {"rung", "kid_toy", "accuracy"} & set(found)
    assert {"in_order", "train_rung", "train_kid_toy"} <= set(found)
    assert "rung" in report.metrics["test"]["even"]


def test_a_group_of_too_few_images_or_of_one_family_is_named_and_not_measured():
    run = ToyRun()
    run.groups = lambda of: {"all": np.arange(64), "few": np.arange(19), "alike": np.arange(20, 44),
                             "five": np.r_[20:40, 44:48]}  # fmt: skip
    run.families = lambda of: np.array(["one" if 20 <= i < 44 else f"{of} {i}" for i in range(64)])
    report = report_of(run, repetitions=1)
    named = report.tables["sets"].set_index(["split", "group", "set"])["said"]
    assert named[("test", "few", "reconstruction")] == named[("val", "few", "reconstruction_val")] == "too few images"
    assert named[("test", "alike", "reconstruction")] == "one family"
    assert named[("test", "five", "reconstruction")] == "5 families, fewer than 6"
    assert report.metrics["test"]["few"] == {"images": 19}
    assert report.metrics["val"]["alike"] == {"images": 24}
    assert set(report.tables["rungs"]["group"]) == {"all"}


def test_a_split_of_too_few_images_is_said(capsys):
    config = example(measure_of_ladder.Config, count=1000, smallest=65)
    assert measure_of_ladder.measure(config, ToyRun()).metrics == {"applies": 0}
    assert "evaluation@ladder does not apply: val has 64 images" in capsys.readouterr().out


def test_one_code_per_image_and_one_family_say_why_there_is_no_ladder(capsys):
    run = ToyRun()
    run.space = space_of((1, 1))
    assert report_of(run).metrics == {"applies": 0}
    assert "evaluation@ladder does not apply: an image has one code per grid" in capsys.readouterr().out
    run = ToyRun()
    run.families = lambda of: np.array(["one" if of == "reconstruction_val" else str(i) for i in range(run.n)])
    assert report_of(run).metrics == {"applies": 0}
    assert "the images are of 1 families" in capsys.readouterr().out


def test_pictures_show_each_image_on_every_rung_and_where_the_samples_stand(report):
    sheet = report.pictures["damage"]
    side = 68  # of an image of 8 pixels, enlarged to 64, and the gap
    assert sheet.shape == (2 * side + 4, (1 + 5 + 1 + 1) * side + 4, 1)
    assert len(report.pictures["scale"].axes) == 3


@pytest.mark.parametrize("side", [0, 1])
def test_a_group_whose_images_are_all_on_one_side_is_named(side):
    """Where families are in several groups, so that another group decides: no pair of independent images would be left."""
    of = measure_of_ladder.Set(
        np.zeros((6, 2)), np.arange(6).astype(str), {"all": np.arange(6)}, np.array([0, 0, 0, 0, 0, side])
    )
    made = SimpleNamespace(damaged={"single_codes": [of]}, real=of)
    assert (measure_of_ladder.Split.unpaired(made, "all") is not None) == (side == 0)


def test_the_interval_given_the_split_is_the_narrower_one_and_holds_the_rung(report):
    for split in ("val", "test"):
        found = report.metrics[split]["all"]
        assert found["rung_given_low"] <= found["rung"] <= found["rung_given_high"]
        assert found["rung_given_high"] - found["rung_given_low"] < found["rung_high"] - found["rung_low"]


def test_the_accuracy_compares_as_many_images_of_each_side_and_kid_all():
    run = ToyRun()
    run.sampled["samples"] = np.concatenate([run.sampled["samples"], run.sampled["baseline"]])
    run.half = np.arange(2 * run.n) // 2 % 2
    row = (
        report_of(run, repetitions=1).tables["sets"].set_index(["split", "group", "set"]).loc["test", "all", "samples"]
    )
    fake, real = run.features("samples"), run.features("reconstruction")
    families = run.families("samples"), run.families("reconstruction")
    chosen = arrays.evenly(len(fake), len(real))
    few = fake[chosen], real, (families[0][chosen], families[1])
    expected = accuracy(*cross_fitted(*few, example(measure_of_ladder.Config).penalty, 2))
    assert row["accuracy"] == pytest.approx(expected.value)
    pairs = kernel.pairs(fake, real, families)
    assert row["kid_toy"] == pytest.approx(kernel.estimate(pairs, *(np.ones((1, len(of))) for of in (fake, real)))[0])


def test_a_smallest_group_larger_than_count_is_refused():
    """No set could ever be compared."""
    with pytest.raises(
        ValueError, match="smallest must be at most count, got 20 and 19: no set would have images enough"
    ):
        example(measure_of_ladder.Config, count=19, smallest=20)
    example(measure_of_ladder.Config, count=20, smallest=20)


def test_families_of_both_sets_are_resampled_together():
    """As with a random split, where variants of one image stand in train and test."""
    features, everything = np.random.default_rng(0).normal(size=(12, 3)), {"all": np.arange(12)}
    real = measure_of_ladder.Set(features, np.array(list("aabbccddeeff")), everything)
    fake = measure_of_ladder.Set(features[::-1], np.array(list("faxfbyyzabzz")), {})
    made = object.__new__(measure_of_ladder.Split)
    made.config, made.run, made.split, made.real = (
        example(measure_of_ladder.Config), SimpleNamespace(params=SimpleNamespace(seed=0)), "test", real,
    )  # fmt: skip
    made._real = made._real_of
    ours, theirs = made._resampled(fake, "all"), made._real("all").weights
    for family in "abf":
        counts = theirs[:, real.families == family][:, :1]
        assert counts.std() > 0
        assert (ours[:, fake.families == family] == counts).all()
    assert (ours[:, fake.families == "x"] != theirs[:, :1]).any()


@pytest.mark.parametrize("first", [0.94, 1.1, 2.4, 0.0094])
def test_ticks_of_the_scale_do_not_crowd(first):
    """In pixels, of labels 14 high. Linear up to .94, the axis had ticks at -.1, 0 and .1."""
    kid = first * np.array([1.0, 1.9, 3.3, 6.0, 14.0])
    rungs = pd.DataFrame({"rung": FIVE, "kid": kid, "kid_low": kid / 2, "kid_high": 1.2 * kid})
    sets = pd.DataFrame({"set": ["samples", TRAIN], "kid": [1.3 * first, 0.4 * first], "kid_low": [0.7 * first, 0.1 * first],
                         "kid_high": [1.8 * first, first], "said": ["1.4", "0.4"]})  # fmt: skip
    for table in (rungs, sets):
        table[["split", "group"]] = ("test", "all")
    figure = measure_of_ladder.scale(rungs, sets, "kid")
    figure.canvas.draw()
    (axis,) = figure.axes
    low, high = axis.get_ylim()
    ticks = np.array([tick for tick in axis.get_yticks() if low <= tick <= high])
    assert len(ticks) >= 2
    assert np.diff(axis.transData.transform(np.stack([0 * ticks, ticks], 1))[:, 1]).min() > 20
