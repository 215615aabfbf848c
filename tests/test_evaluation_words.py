"""Drawing by name, in a world of coloured shapes: five vendors, each with a colour of its own, draw shapes in two sizes. Some
shapes a vendor drew only in test. What is drawn perfectly is recognised, what is recited or drawn at random is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import example
from ruamel.yaml import YAML

import stages.evaluation
from benchmarks import words as benchmark
from stages import dataset as preparation
from tessera.core import files, trees
from tessera.core.conditioning import Condition, Conditioning
from tessera.core.run import SPLITS, Run
from tessera.core.seeding import numpy_generator
from tessera.evaluation import words
from tessera.evaluation.words.held_out import values_of
from tessera.evaluation.words.pixel_recognition import Config as Network
from tessera.images.arrays import to_model
from tessera.words import Vocabulary

SIDE = 16  # codes are colours: 0 is the white paper
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
VENDORS = ("blue", "green", "olive", "red", "teal")
SHAPES: dict[str, Callable[[float], np.ndarray]] = {
    "circle": lambda r: np.hypot(ROWS, COLUMNS) < r,
    "ring": lambda r: (np.hypot(ROWS, COLUMNS) < r) & (np.hypot(ROWS, COLUMNS) > r / 2),
    "square": lambda r: np.maximum(abs(ROWS), abs(COLUMNS)) < r,
    "bar": lambda r: abs(ROWS) < r / 2,
    "pole": lambda r: abs(COLUMNS) < r / 2,
    "wedge": lambda r: (ROWS > COLUMNS) & (np.maximum(abs(ROWS), abs(COLUMNS)) < r),
}
SIZES = {"small": 4.2, "large": 7.2}
DOT = "dot"  # a name that no vendor gives a size
SETTINGS = {"attributes": {"size": list(SIZES)}, "compositions": ["{size} dot", "{size} circle"], "dimensions": 20,
            "count": 100, "samples": 2, "shown": 3, "penalty": 10.0, "iterations": 500, "quantile": 0.1}  # fmt: skip


def drawing(vendor: str, name: str) -> np.ndarray:
    """Codes [T] of a name, as a vendor draws it; the paper, where it names no shape."""
    said = set(name.split())
    radius = next((radius for size, radius in SIZES.items() if size in said), 5.5)
    if DOT in said:
        shape = abs(ROWS) + abs(COLUMNS) < radius
    else:
        shape = next((shape(radius) for key, shape in SHAPES.items() if key in said), np.zeros((SIDE, SIDE), bool))
    return np.where(shape, VENDORS.index(vendor) + 1, 0).ravel().astype(np.int32)


def pixels(codes: np.ndarray) -> np.ndarray:
    """uint8 [N,H,W,3]"""
    colours = np.array(
        [[255, 255, 255], [0, 0, 240], [0, 240, 0], [120, 120, 0], [240, 0, 0], [0, 120, 120]], np.uint8
    )  # all as dark
    return colours[codes.reshape(-1, SIDE, SIDE)]


class Tokenizer:
    def to(self, device: Any) -> Tokenizer:
        return self

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return to_model(pixels(codes.numpy()))


class Scorer:
    """What is covered, and the colour of that, as often as makes it count."""

    def to(self, device: Any) -> Scorer:
        return self

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        covered = (x.mean(1, keepdim=True) < 0.9).float()
        colour = ((1 + x) * covered).sum((2, 3))
        hue = colour / colour.sum(1, keepdim=True).clamp(min=1)
        return torch.cat([covered.flatten(1), hue.repeat(1, 6)], 1)


class Prior:
    """Draws what `how` makes of the vendor and the words that it is told."""

    def __init__(self, how: Callable[[str, str, torch.Generator], np.ndarray], names: list[str]) -> None:
        self.how = how
        self.vocabulary = Vocabulary.of(names, 1, 4)
        self.conditioning = Conditioning(
            (Condition("label", ("shapes",), 1, 0.1), Condition("vendor", VENDORS, 1, 0.1),
             self.vocabulary.condition(0.1))
        )  # fmt: skip
        self.space = SimpleNamespace(length=SIDE * SIDE)

    def to(self, device: Any) -> Prior:
        return self

    def sample(self, n: int, generator: torch.Generator, sampling: Any, conditions: torch.Tensor) -> torch.Tensor:
        self.conditioning.require(conditions, n)
        label, vendor, told = self.conditioning.split(conditions)
        assert (label == 1).all()  # nothing is said of it
        names = [self.vocabulary.text(ids.tolist()) for ids in told]
        found = [self.how(VENDORS[int(who)], name, generator) for who, name in zip(vendor[:, 0], names, strict=True)]
        return torch.from_numpy(np.array(found)).long()


def perfect(vendor: str, name: str, generator: torch.Generator) -> np.ndarray:
    return drawing(vendor, name)


def reciting(vendor: str, name: str, generator: torch.Generator) -> np.ndarray:
    return drawing("red", "large ring")  # a training image


def splits() -> dict[str, list[tuple[str, str]]]:
    """Vendor and name of each image. A vendor draws one shape or two in test alone, and others in val."""
    found: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for who, vendor in enumerate(VENDORS):
        found["train"].append((vendor, DOT))
        for at, shape in enumerate(SHAPES):
            split = {who: "test", (who + 1) % 5: "val"}.get(at % 5, "train")
            found[split] += [(vendor, f"{size} {shape}") for size in SIZES]
    return found


World = Callable[..., Run]


@pytest.fixture
def world(tiny_run: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    """`world(how)`: a run whose prior draws as `how` does. `order` puts the images of each split into another order."""

    def make(
        how: Callable[..., np.ndarray] = perfect,
        order: Callable[[int], np.ndarray] = np.arange,
        there: dict[str, list[tuple[str, str]]] | None = None,
        **columns: Callable[[str, list[str]], list[str]],
    ) -> Run:
        run: Run = tiny_run("words")
        images, tables = there or splits(), []
        for split in SPLITS:
            rows = [images[split][at] for at in order(len(images[split]))]
            codes = np.array([drawing(*row) for row in rows])
            features = Scorer()(to_model(pixels(codes))).numpy()
            names = {split: split, "test": "reconstruction", "val": "reconstruction_val"}
            files.save_array(run.folder("codes") / f"{split}.npy", codes)
            for folder in ("dataset", "reconstruction"):
                files.save_array(run.folder(folder) / f"{split}.npy", pixels(codes))
            for of in {split, names[split]}:
                files.save_array(run.folder("features") / f"{of}.npy", features)
            table = {
                "split": [split] * len(rows),
                "name": [f"{vendor}/{name}" for vendor, name in rows],
                "family": [name.split()[-1] for _, name in rows],
                "label": [0] * len(rows),
                "label_name": ["shapes"] * len(rows),
                "vendor": [VENDORS.index(vendor) for vendor, _ in rows],
                "vendor_name": [vendor for vendor, _ in rows],
            }
            table |= {column: change(split, table[column]) for column, change in columns.items()}
            tables.append(pd.DataFrame(table))
        files.write_table(run.folder("dataset") / "table.csv", pd.concat(tables))
        files.save_array(run.folder("codes") / "augmented.npy", np.asarray(run.codes("train"))[None])
        prior = Prior(how, [name for _, name in images["train"]])
        for kind, model in {"prior": prior, "tokenizer": Tokenizer(), "scorer": Scorer()}.items():
            monkeypatch.setattr(Run, kind, lambda self, model=model: model)
        return run

    return make


def measured(run: Run, **values: Any) -> Any:
    return words.measure(example(words.Config, **SETTINGS | values), run)


# what is drawn well, and what is not


def test_perfect_drawings_reach_the_ceiling_and_retrieved_ones_are_of_the_wrong_vendor(world: World) -> None:
    report = measured(world())
    whole = report.metrics["all"]
    assert whole["held_out"] == report.metrics["held_out"] == 12
    for name in ("originals", "reconstructions", "samples"):
        assert whole[name]["top_1"] == whole[name]["top_5"] == 1
        assert whole[name]["vendor_right"] > 0.9, "the judge of vendors, on 12 small pictures"
        assert whole[name]["top_5_and_vendor"] == whole[name]["vendor_right"]
    assert whole["top_5_of_reconstructions"] == 1
    assert whole["retrieved"]["top_1"] == 1
    assert whole["retrieved"]["vendor_right"] == whole["retrieved"]["top_5_and_vendor"] < 0.3
    assert whole["other_concept"]["top_1"] == 0
    assert whole["near_copies"] < 0.5  # no more than so few test images have themselves
    assert set(report.metrics["vendors"]) == set(VENDORS)
    assert report.metrics["compositions"]["names"] == 2  # small and large circles stand in training
    assert list(report.tables["compositions"]["name"]) == ["small dot", "large dot"]
    found = report.metrics["attributes"]
    assert [found[name] for name in ("originals", "reconstructions", "samples")] == [{"size": 1, "every": 1}] * 3
    assert found["compositions"]["size"] >= 0.8  # the judge has seen no dot of a size
    assert set(report.tables["attributes"]["chance"]) == {0.5}


def test_compositions_that_vendors_drew_have_ceilings(world: World) -> None:
    withheld = splits()
    withheld["test"] += [("red", "small dot"), ("teal", "large dot")]
    found = measured(world(there=withheld))
    names = ["compositions_drawn", "compositions_originals", "compositions_reconstructions"]
    assert [found.metrics["attributes"][name]["size"] for name in names] == [1, 1, 1]
    table = found.tables["attributes"].set_index(["set", "attribute"])
    assert list(table.loc[[(name, "size") for name in names], "names"]) == [2, 2, 2]
    assert found.metrics["compositions"]["names"] == 2
    judges = found.tables["judges"].set_index(["judge", "of"])["images"]
    for vendor in ("red", "teal"):  # each learns from the other's
        assert judges["size", f"compositions, {vendor}"] == judges["size", "all"] + 1
    wrong = measured(world(lambda vendor, name, generator: drawing(vendor, "large dot"), there=withheld))
    assert wrong.metrics["attributes"]["compositions_drawn"]["size"] == 0.5
    assert "compositions_drawn" not in measured(world()).metrics["attributes"]


def test_judges_of_compositions_where_few_are_drawn(world: World) -> None:
    """One vendor's drawing of one attribute, and one by a vendor that training lacks: others judge, and it is left out."""
    there = splits()
    there["test"] += [("red", "small dot")]
    there["train"] = [row for row in there["train"] if row[0] != "olive"]
    there["val"] = [row for row in there["val"] if row[0] != "olive"]
    there["test"] += [("olive", "large dot")]
    shades = {"shade": ["ring", "bar"]}
    found = measured(world(there=there), attributes={**SETTINGS["attributes"], **shades})
    judges = found.tables["judges"]
    own = judges[judges["of"].str.startswith("compositions")]
    assert set(own["judge"]) == {"size"}
    assert set(own["of"]) == {
        f"compositions, {vendor}" for vendor in ("blue", "green", "teal")
    }  # of red nobody else drew one
    table = found.tables["attributes"].set_index(["set", "attribute"])
    assert table.loc[("compositions_drawn", "size"), "names"] == 1
    assert (
        table.loc[("originals", "size"), "names"] == 2 * len([row for row in there["test"] if "dot" not in row[1]]) // 2
    )


def test_a_prior_that_recites_a_training_image_is_found_out(world: World) -> None:
    whole = measured(world(reciting)).metrics["all"]
    assert whole["near_copies"] == 1
    assert whole["samples"]["top_1"] == pytest.approx(2 / 12)  # both sizes of the ring, which green is asked for
    assert whole["samples"]["vendor_right"] == pytest.approx(2 / 12)  # what red is asked for
    assert whole["samples"]["top_1_and_vendor"] == 0
    assert whole["originals"]["top_1"] == 1


def test_samples_that_are_right_half_of_the_time_are_half_right(world: World) -> None:
    def at_times(vendor: str, name: str, generator: torch.Generator) -> np.ndarray:
        right = bool(torch.rand((), generator=generator) < 0.5)
        return drawing(vendor, name) if right else drawing(VENDORS[VENDORS.index(vendor) - 1], name)

    report = measured(world(at_times), samples=64)
    ours = report.metrics["all"]["samples"]
    assert ours["top_1"] == 1
    assert ours["vendor_right"] == pytest.approx(0.5, abs=0.06)  # of 768: three standard deviations
    assert ours["vendor_right_low"] <= ours["vendor_right"] <= ours["vendor_right_high"]


def test_at_chance_where_training_names_are_shuffled(world: World) -> None:
    """Each training image has the concept of another one, so that judges of concepts know nothing."""
    run = world()
    train, val, test = (words.images(run, split) for split in ("train", "val", "test"))
    found, quick = [], {"attributes": {}, "compositions": [], "network": example(Network, epochs=1)}
    for seed in range(20):
        shuffled = train._replace(concepts=np.random.default_rng(seed).permutation(train.concepts))
        judges = words.Judges(
            shuffled, val, test.at(np.zeros(0, int)), ["blue"], example(words.Config, **SETTINGS | quick), run
        )
        asked = test.at((test.vendors == "blue") & np.isin(test.concepts, judges.concepts["blue"].classes))
        found += judges.judged(asked, words.real(asked, run, "test"))["top_1"].tolist()
    assert len(found) >= 60
    assert np.mean(found) < 0.3  # 1 of 7


def test_guidance_is_chosen_on_validation_images(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prior is right only at one of the strengths, and recites at others."""
    run, told = world(), []
    prior: Any = run.prior()
    plain = prior.sample

    def sample(n: int, generator: torch.Generator, sampling: Any, conditions: torch.Tensor) -> torch.Tensor:
        told.append((dict(sampling.guidance), set(asked(prior, conditions))))
        prior.how = perfect if sampling.guidance == {"words": 3.0, "vendor": 0.5} else reciting
        return plain(n, generator, sampling, conditions)

    monkeypatch.setattr(prior, "sample", sample)
    report = measured(run, guidance={"words": [1.0, 3.0], "vendor": [0.5, 2.0]})
    assert report.metrics["guidance"] == {"words": 3.0, "vendor": 0.5}
    assert report.metrics["all"]["samples"]["top_1"] == 1
    table = report.tables["guidance"]
    assert table[["words", "vendor"]].to_numpy().tolist() == [[1, 0.5], [1, 2], [3, 0.5], [3, 2]]
    assert table["top_5_and_vendor"].idxmax() == 2
    val = {name for _, name in splits()["val"]}
    assert all(names <= val for strengths, names in told if strengths != {"words": 3.0, "vendor": 0.5})


def asked(prior: Any, conditions: torch.Tensor) -> list[str]:
    *_, told = prior.conditioning.split(conditions)
    return [prior.vocabulary.text(ids.tolist()) for ids in told]


# what is held out


def test_held_out_images_stand_in_no_training_by_file_and_by_codes(world: World) -> None:
    """By the split that the stage makes."""
    everything = [(vendor, f"{size} {shape}") for vendor in VENDORS for shape in SHAPES for size in SIZES]
    units = [f"{vendor}/{name.split()[-1]}" for vendor, name in everything]
    split = preparation.Split(by="vendor_and_family", train=0.6, val=0.15, test=0.25, withheld=[])
    zeros = np.zeros(len(units), np.int64)
    divided = preparation.divide(units, zeros, ["train"] * len(units), split, numpy_generator(0, "test"))
    there = {name: [row for row, own in zip(everything, divided, strict=True) if own == name] for name in SPLITS}
    run = world(there=there)
    train, test = words.images(run, "train"), words.images(run, "test")
    held_out = test.at(words.unseen(test, train))
    assert len(held_out.rows) >= 4
    assert not {*zip(held_out.vendors, held_out.names, strict=True)} & {*zip(train.vendors, train.names, strict=True)}
    assert not {*zip(held_out.vendors, held_out.concepts, strict=True)} & {
        *zip(train.vendors, train.concepts, strict=True)
    }
    assert not words.same_codes(held_out, train).any()
    assert set(held_out.concepts) <= set(train.concepts)


def test_a_concept_that_its_vendor_drew_in_training_is_not_held_out(world: World) -> None:
    there = splits()
    there["train"].append(there["test"][0])
    run = world(there=there)
    train, test = words.images(run, "train"), words.images(run, "test")
    assert words.unseen(test, train).sum() == len(there["test"]) - 2  # both sizes
    of_nobody = {**there, "test": [("red", "small spiral")]}
    run = world(there=of_nobody)
    assert not words.unseen(words.images(run, "test"), words.images(run, "train")).any()


def test_images_with_the_codes_of_a_training_image_are_left_out(world: World) -> None:
    run = world()
    codes = np.array(run.codes("test"))
    codes[:3] = run.codes("train")[0]
    files.save_array(run.folder("codes") / "test.npy", codes)
    report = measured(run)
    assert report.metrics["same_codes"] == 3
    assert report.metrics["held_out"] == 9


def test_images_of_whose_name_no_word_is_known_are_left_out(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    there = splits()
    name = lambda split, own: [f"{each.split('/')[0]}/tint" if split == "test" else each for each in own]  # noqa: E731
    assert measured(world(there=there, name=name)).metrics == {"applies": 0}
    assert "'without_words': 12" in capsys.readouterr().out


def test_retrieved_is_the_nearest_of_the_same_name_and_never_of_the_vendor(world: World) -> None:
    run = world()
    train, test = words.images(run, "train"), words.images(run, "test")
    found = train.at(words.retrieved(test, train))
    assert (found.names == test.names).all()
    assert (found.vendors != test.vendors).all()


# chance, order, seed


def test_the_order_of_images_changes_nothing(world: World) -> None:
    plain = measured(world())
    other = measured(world(order=lambda n: np.random.default_rng(n).permutation(n)))
    assert plain.metrics == other.metrics
    for name, table in plain.tables.items():
        pd.testing.assert_frame_equal(table, other.tables[name])


def test_the_seed_decides(world: World) -> None:
    def noisy(vendor: str, name: str, generator: torch.Generator) -> np.ndarray:
        return drawing(VENDORS[int(torch.randint(3, (), generator=generator))], name)

    run = world(noisy)
    first = measured(run).metrics["all"]["samples"]
    run.params.raw["seed"] += 1
    assert measured(run).metrics["all"]["samples"] != first


def test_as_many_of_each_vendor_as_asked_for_chosen_by_the_seed() -> None:
    vendors = np.repeat(VENDORS, [50, 40, 30, 20, 5])
    rows = words.chosen(vendors, 10, seed=0)
    assert {vendor: (vendors[rows] == vendor).sum() for vendor in VENDORS} == dict.fromkeys(VENDORS, 10) | {"teal": 5}
    assert (rows == words.chosen(vendors, 10, seed=0)).all()
    assert (rows != words.chosen(vendors, 10, seed=1)).any()


# the contract


def test_metrics_are_declared_finite_and_written_with_tables_and_pictures(world: World) -> None:
    run = world()
    run.params.raw["evaluation"] = {"words": example(words.Config, **SETTINGS).model_dump()}
    stages.evaluation.main(run)
    metrics = dict(trees.numbers(files.read_json(Path("metrics/evaluation/words.json"))))
    pattern = re.compile("|".join(re.escape(of).replace(r"\*", "[^.]*") for of in words.METRICS))
    assert len(metrics) > 100
    assert [name for name in metrics if not pattern.fullmatch(name)] == []
    written = {path.name for path in Path("plots/evaluation/words").iterdir()}
    assert written == {"accuracy.csv", "attributes.csv", "compositions.csv", "concepts.csv", "guidance.csv", "judges.csv",
                       "held_out.png", "worst.png", "compositions.png"}  # fmt: skip


def test_without_attributes_and_compositions(world: World) -> None:
    report = measured(world(), attributes={}, compositions=[])
    assert report.metrics["compositions"] == {"names": 0}
    assert report.metrics["attributes"] == {}
    assert set(report.tables) == {"accuracy", "concepts", "guidance", "judges"}


def test_it_says_why_it_does_not_apply(world: World, tiny_run: Any) -> None:
    assert "has no vendors" in str(words.requires(tiny_run("words")))
    run = world()
    assert words.requires(run) is None
    run.prior().conditioning = Conditioning()
    assert "is not told words and vendor; see prior.conditions" in str(words.requires(run))
    run.prior().conditioning = Conditioning(
        tuple(part._replace(dropout=0.0) for part in Prior(perfect, [DOT]).conditioning)
    )
    assert "never went without label in training" in str(words.requires(run))
    run = world(there=splits() | {"test": [("red", DOT)]})
    assert "set dataset.split.by to vendor_and_family" in str(words.requires(run))


@pytest.mark.parametrize(("values", "says"), [
    ({"compositions": ["{colour} dot"]}, r"at least one of {size} and no other, got '{colour} dot'"),
    ({"compositions": ["red dot"]}, r"got 'red dot'"),
    ({"compositions": ["{size dot"]}, r"got '{size dot'"),
    ({"attributes": {"every": ["a", "b"]}, "compositions": []}, "must not name one 'every'"),
    ({"attributes": {"size": ["a"]}, "compositions": []}, "at least 2"),
])  # fmt: skip
def test_bad_values_are_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        example(words.Config, **SETTINGS | values)


def test_words_of_compositions_that_are_not_known_are_named(world: World) -> None:
    with pytest.raises(ValueError, match="no word 'dott' is known; the nearest are 'dot'"):
        measured(world(), compositions=["{size} dott"])


# names


def test_values_are_whole_words_and_one() -> None:
    tones = ["dark skin tone", "medium-dark skin tone"]
    names = ["mage: dark skin tone", "mage: medium-dark skin tone", "mage", "women: dark skin tone, dark skin tone",
             "women: dark skin tone, medium-dark skin tone"]  # fmt: skip
    assert list(values_of(names, tones)) == ["dark skin tone", "medium-dark skin tone", "", "", ""]
    assert list(values_of(["woman mage", "human", "man, woman"], ["man", "woman"])) == ["woman", "", ""]


def test_compositions_hold_a_pair_that_never_stood_together() -> None:
    config = example(
        words.Config,
        attributes={"gender": ["man", "woman"], "tone": ["dark skin tone", "light skin tone"]},
        compositions=["{gender} ninja: {tone}", "{gender} mage: {tone}"],
    )
    known = ["ninja: dark skin tone", "ninja: light skin tone", "man ninja", "woman mage", "man mage",
             "woman mage: dark skin tone", "man mage: dark skin tone", "man: light skin tone"]  # fmt: skip
    found = words.composed(config, known)
    assert found == {
        "woman ninja: dark skin tone": "{gender} ninja: {tone}",  # woman and ninja
        "woman ninja: light skin tone": "{gender} ninja: {tone}",
        "man mage: light skin tone": "{gender} mage: {tone}",  # mage and light skin tone
        "woman mage: light skin tone": "{gender} mage: {tone}",
    }


# the page


def evaluated(run: Run) -> Path:
    """As the stage leaves its results, beside params.yaml."""
    settings = {"evaluation": {"words": example(words.Config, **SETTINGS).model_dump()}}
    run.params.raw |= settings
    stages.evaluation.main(run)
    with open("params.yaml", "w") as stream:
        YAML(typ="safe").dump(settings, stream)
    return Path("docs/studies/words.md")


def test_the_page_says_what_was_found(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    page = evaluated(world())
    assert benchmark.main([]) == 0
    assert f"wrote {page}" in capsys.readouterr().out
    text = page.read_text()
    assert (
        "**Asked for a name and for a vendor that drew its concept only in test, the prior shows the concept in 100 % of"
        in text
    )
    assert re.search(r"\| vendor right \| at least 80 % \| (9\d|100) % \| yes \|", text)
    # of both right: retrieved ones are not
    assert re.search(
        r"\| all \| 12 \| (9\d|100) \(\d+ to 100\) % \| (9\d|100) % \| (9\d|100) % \| [12]?\d % \| 0 % \|", text
    )
    assert re.search(r"^\| `{size} dot` \| (80|90|100) % \| \1 % \|$", text, re.M)
    linked = re.findall(r"\((figures/[^)]+|words-[^)]+)\)", text)
    assert len(linked) == 4
    assert all((page.parent / path).stat().st_size > 100 for path in linked)
    assert (page.parent / "words-concepts.csv").exists()
    assert "nan" not in text


def test_the_page_names_what_is_not_met(world: World) -> None:
    page = evaluated(world(reciting))
    assert benchmark.main([]) == 0
    text = page.read_text()
    assert "| vendor right | at least 80 % | 17 % | **no** |" in text
    assert "| near-copies of a training image, in codes | at most 2 % | 100 % | **no** |" in text


def test_no_page_of_a_run_that_the_measure_does_not_apply_to(tiny_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(tiny_run("words"))
    assert benchmark.main([]) == 1
    assert "evaluation@words does not apply to this run" in capsys.readouterr().err
