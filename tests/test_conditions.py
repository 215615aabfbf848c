"""What priors are told: words to ids and back, several conditions, their dropout, guidance, and what is asked for."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import example, labelled
from torch import Tensor, nn

from stages import prior as prior_training
from stages import samples
from tessera import conditions, words
from tessera.autoregression.condition import ConditionEmbedding
from tessera.autoregression.sampling import Guided, naive_sample
from tessera.core import files, models, seams
from tessera.core.conditioning import UNCONDITIONAL, Condition, Conditioning
from tessera.core.contracts import Sampling
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.core.space import CodeSpace
from tessera.words import Vocabulary

SPACE = CodeSpace(((1, 2), (2, 2)), (3, 2))
TOLD = Conditioning(
    (
        Condition("label", ("people", "objects"), 1, 0.1),
        Condition("vendor", ("noto", "twitter", "openmoji"), 1, 0.2),
        Condition("words", ("woman", "guitar", "mage", "dark-skin-tone"), 3, 0.3),
    )
)
ROWS = torch.tensor([[0, 0, 0, 4, 4], [1, 2, 1, 3, 0], [2, 1, 4, 4, 4], [1, 3, 2, 0, 4], [0, 1, 3, 3, 3]])
LEARNED = [name for name in seams.names("priors") if name not in ("histogram", "ngram", "uniform")]


def build(name: str, told: Conditioning = TOLD) -> Any:
    module = seams.plugin("priors", name)
    return module.build(example(module.Config), SPACE, told).double().eval()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# words


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("guitar", "guitar"),
        ("woman firefighter: dark skin tone", "woman firefighter dark-skin-tone"),
        (
            "kiss: woman, man, medium-dark skin tone, light skin tone",
            "kiss woman man medium-dark-skin-tone light-skin-tone",
        ),
        ("flag: Côte d’Ivoire", "flag côte-d'ivoire"),
        ("Japanese “bargain” button", "japanese bargain button"),
        ("O button (blood type)", "o button blood type"),
        ("keycap: #", "keycap #"),
        ("waving_hand", "waving hand"),
        (" : ", ""),
    ],
)
def test_names_are_split_as_they_are_written(name, expected):
    assert words.split(name) == expected.split()


def test_the_vocabulary_has_the_frequent_words_whatever_the_order_of_names():
    names = ["woman mage", "woman: dark skin tone", "mage mage", "guitar"]
    vocabulary = Vocabulary.of(names, 1, 3)
    assert vocabulary.words == ("mage", "woman", "dark-skin-tone", "guitar")  # a name counts once
    assert Vocabulary.of(reversed(names), 1, 3) == vocabulary
    assert Vocabulary.of(names, 2, 3).words == ("mage", "woman")
    with pytest.raises(InputError, match="no word stands in 5 names of training images; the most frequent stands in 2"):
        Vocabulary.of(names, 5, 3)


def test_words_to_ids_and_back():
    vocabulary = Vocabulary(("woman", "guitar", "dark-skin-tone"), 2)
    ids = vocabulary.ids(["guitar", "Woman: dark skin tone", "unheard of", "guitar guitar woman"])
    assert ids.tolist() == [[1, 3], [0, 2], [3, 3], [1, 1]]
    assert [vocabulary.text(row) for row in ids] == ["guitar", "woman dark-skin-tone", "", "guitar guitar"]
    assert vocabulary.ids([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("gitar", "no word 'gitar' is known; the nearest are 'guitar'"),
        ("dark", "no word 'dark' is known; the nearest are 'dark-skin-tone'"),
        ("xylophone", "no word 'xylophone' is known; among the known are 'woman', 'guitar', 'dark-skin-tone'"),
        ("woman woman woman", "must be from 1 to 2 words, got 3"),
        (" ", "must be from 1 to 2 words, got 0"),
    ],
)
def test_a_wish_of_unknown_words_is_told_the_nearest(text, why):
    with pytest.raises(InputError, match=why):
        Vocabulary(("woman", "guitar", "dark-skin-tone"), 2).asked(text)


# the columns


def test_columns_are_split_in_order_and_one_condition_can_be_left_open():
    label, vendor, of_words = TOLD.split(ROWS)
    assert (label.shape, vendor.shape, of_words.shape, TOLD.columns) == ((5, 1), (5, 1), (5, 3), 5)
    without = TOLD.without(ROWS, ["vendor"])
    assert without[:, 1].tolist() == [3] * 5
    assert torch.equal(without[:, [0, 2, 3, 4]], ROWS[:, [0, 2, 3, 4]])
    assert torch.equal(TOLD.nothing(5), TOLD.without(ROWS, TOLD.names))
    assert Conditioning.of_facts(models.plain(TOLD.facts)) == TOLD
    assert not UNCONDITIONAL
    assert UNCONDITIONAL.facts == {"conditions": []}


def test_ids_out_of_range_are_named_by_condition():
    TOLD.require(ROWS, 5)
    for column, limit in (
        (0, "label must be from 0 to 1, or 2 for none"),
        (4, "words must be from 0 to 3, or 4 for none"),
    ):
        wrong = ROWS.clone()
        wrong[2, column] = 9
        with pytest.raises(InputError, match=limit):
            TOLD.require(wrong, 5)
    with pytest.raises(InputError, match=r"shape \(5, 5\), one row per image and columns for label, vendor, words"):
        TOLD.require(ROWS[:, :3], 5)


def test_the_embedding_is_a_sum_over_conditions_and_a_bag_has_no_order():
    module = ConditionEmbedding(TOLD, 6).double()
    label, vendor, of_words = (table.weight for table in module.tables)
    found = module(ROWS)
    torch.testing.assert_close(found[0], label[0] + vendor[0] + of_words[0])
    torch.testing.assert_close(found[1], label[1] + vendor[2] + of_words[[1, 3, 0]].sum(0) / 3**0.5)
    torch.testing.assert_close(found[2], label[2] + vendor[1] + of_words[4])  # no label, no words
    torch.testing.assert_close(found[3], label[1] + vendor[3] + of_words[[2, 0]].sum(0) / 2**0.5)
    torch.testing.assert_close(module(ROWS[:, [0, 1, 4, 2, 3]]), found)


def test_an_embedding_of_one_label_has_the_weights_that_it_always_had():
    """So have the networks around it: what an unconditional prior draws from the generator does not change either."""
    torch.manual_seed(3)
    module = ConditionEmbedding(labelled(4), 8)
    torch.manual_seed(3)
    table = nn.Embedding(5, 8)
    assert torch.equal(module(torch.tensor([[4], [0]])), table(torch.tensor([4, 0])))
    assert [name for name, _ in module.named_parameters()] == ["tables.0.weight"]


# priors


@pytest.mark.parametrize("name", [name for name in LEARNED if name != "masked"])
def test_probabilities_given_several_conditions_sum_to_one(name):
    every = torch.tensor(list(itertools.product(*[range(3)] * 2, *[range(2)] * 4)))
    prior = build(name)
    totals = [prior.log_prob(every, row.expand(len(every), -1)).exp().sum() for row in ROWS]
    torch.testing.assert_close(torch.stack(totals), torch.ones(5).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", LEARNED)
def test_each_condition_changes_what_a_prior_expects(name):
    prior, codes = build(name), torch.zeros(1, 6, dtype=torch.int64)
    with torch.no_grad():
        for table in (part for part in prior.modules() if isinstance(part, nn.Embedding)):
            table.weight.mul_(3)
    row = ROWS[:1]
    before = prior.log_prob(codes, row)
    for condition in TOLD.names:
        assert not torch.equal(prior.log_prob(codes, TOLD.without(row, [condition])), before)
    assert torch.equal(prior.log_prob(codes, row[:, [0, 1, 3, 2, 4]]), before)  # the order of words does not matter


@pytest.mark.parametrize("name", ["histogram", "ngram"])
def test_tables_are_told_one_class_at_most(name):
    with pytest.raises(
        InputError, match=f"{name} can be told one class, not words nor several conditions, got label, vendor, words"
    ):
        build(name)
    build(name, labelled(2))


# guidance


def test_guidance_of_several_conditions_is_its_formula_and_costs_what_has_another_strength():
    guided = Guided.of(ROWS, TOLD, {"label": 2.5, "vendor": 1.0, "words": 0.5})
    assert guided.strengths == (2.5, 0.5)
    given, no_label, no_words = guided.parts.chunk(3)
    assert torch.equal(given, ROWS)
    assert torch.equal(no_label, TOLD.without(ROWS, ["label"]))
    assert torch.equal(no_words, TOLD.without(ROWS, ["words"]))
    logits = torch.randn(15, 4, generator=rng()).double()
    a, b, c = logits.chunk(3)
    torch.testing.assert_close(guided.blended(logits), a + 1.5 * (a - b) - 0.5 * (a - c))
    logits[7, 2] = -torch.inf  # impossible without the label of row 2
    assert (guided.blended(logits) == -torch.inf).nonzero().tolist() == [[2, 2]]


def test_guidance_0_forgets_each_and_1_is_free():
    assert Guided.of(ROWS, TOLD, {"label": 1.0}) == Guided(ROWS, ())
    forgotten = Guided.of(ROWS, TOLD, {"label": 0.0, "words": 0.0})
    assert (forgotten.strengths, torch.equal(forgotten.parts, TOLD.without(ROWS, ["label", "words"]))) == ((), True)


@pytest.mark.parametrize("name", LEARNED)
def test_samples_follow_the_guidance_of_each_condition(name):
    prior, how = build(name), Sampling(guidance={"label": 3.0, "words": 2.0, "vendor": 0.0})
    found = prior.sample(5, rng(), how, ROWS)
    assert torch.equal(prior.sample(5, rng(), how, TOLD.without(ROWS, ["vendor"])), found)
    if prior.exact:
        assert torch.equal(naive_sample(prior, 5, rng(), how, conditions=ROWS), found)
    forgotten = prior.sample(5, rng(), Sampling(guidance=dict.fromkeys(TOLD.names, 0.0)), ROWS)
    assert torch.equal(forgotten, prior.sample(5, rng(), conditions=TOLD.nothing(5)))


# training


def data_of(told: Tensor, dropout: dict[str, float]) -> prior_training.Data:
    own = Conditioning(tuple(part._replace(dropout=dropout[part.name]) for part in TOLD))
    section = {name: example(getattr(prior_training, name.capitalize())) for name in ("words",)}
    own_section = prior_training.Settings.model_construct(
        name="any", conditions=None, augmented=0.0, annealing=0.0, training=example(prior_training.Training), **section
    )
    codes = np.zeros((len(told), 6), np.int64)
    both = {"train": told.numpy(), "val": told.numpy()}
    return prior_training.Data({"train": codes, "val": codes}, np.zeros((0, 0, 0)), both, own, own_section, "cpu")


def test_each_condition_is_left_out_by_itself_and_whole():
    told = ROWS[:2].repeat(3000, 1)
    data = data_of(told, {"label": 0.0, "vendor": 0.5, "words": 0.25})
    _, found, _ = data.batch(np.arange(6000), rng(), 0.0)
    assert torch.equal(found[:, 0], told[:, 0])
    lost_vendor = found[:, 1] == 3
    lost_words = (found[:, 2:] == 4).all(1)
    assert abs(lost_vendor.double().mean() - 0.5) < 0.03
    assert abs(lost_words.double().mean() - 0.25) < 0.03
    assert abs((lost_vendor & lost_words).double().mean() - 0.125) < 0.02  # one does not go with the other
    assert torch.equal(found[~lost_words, 2:], told[~lost_words, 2:])
    assert np.array_equal(data.conditions["train"], told.numpy())


def test_a_toy_whose_law_depends_on_words_is_learned():
    """The first code is that of the thing, the second that of the tone: of four images. Where nothing is said of the words, each
    is as likely as another."""
    told = Conditioning((Condition("words", ("sun", "moon", "light", "dark"), 2, 0.1),))
    pairs = torch.tensor([[0, 2], [0, 3], [1, 2], [1, 3]])
    codes, nothing = torch.stack([pairs[:, 0], pairs[:, 1] - 2], dim=1), told.nothing(4)
    module = seams.plugin("priors", "rnn")
    prior = module.build(example(module.Config, dropout=0.0), CodeSpace(((1, 2),), (2,)), told)
    optimizer = torch.optim.Adam(prior.parameters(), 0.03)
    for _ in range(100):
        optimizer.zero_grad()
        loss = prior.losses(codes.repeat(2, 1), torch.cat([pairs, nothing]))["nll"]
        loss.backward()
        optimizer.step()
    prior.eval()
    assert prior.log_prob(codes, pairs).exp().min() > 0.9
    assert prior.log_prob(codes, pairs.flip(1)).exp().min() > 0.9
    torch.testing.assert_close(prior.log_prob(codes, nothing).exp(), torch.full((4,), 0.25), rtol=0, atol=0.05)
    drawn = prior.sample(400, rng(), conditions=pairs[1].expand(400, -1))
    assert (drawn == codes[1]).all(1).double().mean() > 0.9


# images and wishes


@pytest.fixture
def told_run(tiny_run: Any, raw: dict[str, Any]) -> Run:
    """Two vendors have drawn every second image, with names as of emoji; the prior is told all three."""
    run = tiny_run()
    table = files.read_table(Path("artifacts/dataset/table.csv"))
    table["vendor"] = np.arange(len(table)) // 2 % 2
    table["vendor_name"] = np.array(["noto", "2"])[table["vendor"]]  # a name that looks like a number
    table["name"] = (
        table["vendor_name"] + "/" + np.where(table["label"] == 0, "round thing", "square thing: dark skin tone")
    )
    files.write_table(Path("artifacts/dataset/table.csv"), table)
    files.write_json(
        Path("artifacts/dataset/facts.json"), {"label_names": ["round", "square"], "vendor_names": ["noto", "2"]}
    )
    raw["prior"]["conditions"] = {"label": 0.1, "vendor": 0.2, "words": 0.3}
    raw["prior"]["words"] = {"least_count": 2, "most": 3}
    raw["prior"]["name"] = "transformer"
    recipe = models.prior_recipe(run.params, run.space, conditions.wanted(run))
    models.save(run.folder("prior"), models.build(recipe), recipe, "")
    return run


def test_conditions_come_from_the_table_and_go_with_the_model(told_run):
    told = told_run.prior().conditioning
    assert told.dropout == {"label": 0.1, "vendor": 0.2, "words": 0.3}
    assert told["words"].names == ("thing", "dark-skin-tone", "square", "round") or set(told["words"].names) == {
        "thing", "round", "square", "dark-skin-tone",
    }  # fmt: skip
    assert Vocabulary.load(told_run.folder("prior")) == Vocabulary(told["words"].names, 3)
    table = told_run.table("test")
    found = conditions.of_split(told_run, told, "test")
    assert np.array_equal(found[:, 0], table["label"])
    assert np.array_equal(found[:, 1], table["vendor"])
    text = conditions.described(told, found)
    assert list(text.columns) == ["label", "label_name", "vendor", "vendor_name", "words"]
    assert text["vendor_name"].tolist() == table["vendor_name"].tolist()
    assert set(text["words"]) == {"round thing", "square thing dark-skin-tone"}


def test_a_condition_that_the_data_set_has_not_is_refused(told_run, raw):
    files.write_json(Path("artifacts/dataset/facts.json"), {"label_names": ["round", "square"]})
    with pytest.raises(
        InputError, match=r"vendor: must be none where the data set has no vendors, got .*images have label, words"
    ):
        conditions.wanted(told_run)


def test_a_prior_that_is_told_something_else_is_refused(told_run, raw):
    raw["prior"]["conditions"]["vendor"] = "none"
    with pytest.raises(InputError, match=r"does not fit params.yaml: prior\.conditions are .*Run `dvc repro prior`"):
        Run(Params(raw)).prior()


def test_what_is_asked_for_becomes_columns(told_run):
    prior = told_run.prior()
    told = prior.conditioning
    found = conditions.conditions_of(prior, {"words": ["square thing"], "vendor": ["2", "noto"]}, 2)
    thing, square = (told["words"].names.index(word) for word in ("thing", "square"))
    assert found.tolist() == [[2, 1, square, thing, 4], [2, 0, square, thing, 4]]
    assert torch.equal(
        conditions.conditions_of(told_run.folder("prior"), {"label": ["1"]}, 3), torch.tensor([[1, 2, 4, 4, 4]] * 3)
    )
    assert conditions.conditions_of(seams.plugin("priors", "uniform").build(None, SPACE, UNCONDITIONAL), {}, 3) is None


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"vendor": ["noot"]}, "vendor 'noot': there is no such vendor; there are noto, 2; did you mean 'noto'"),
        ({"words": ["squair"]}, "no word 'squair' is known; the nearest are 'square'"),
        ({"colour": ["red"]}, "this prior knows no colour: it is told label, vendor, words"),
        ({"vendor": ["noto"] * 3}, "vendor: must be one for all 2 images, or one for each, got 3"),
    ],
)
def test_wishes_that_cannot_be_met_are_told_what_there_is(told_run, asked, why):
    with pytest.raises(InputError, match=why):
        conditions.conditions_of(told_run.prior(), asked, 2)


def test_what_was_never_left_out_must_be_given():
    told = Conditioning((TOLD["label"]._replace(dropout=0.0), TOLD["vendor"]))
    with pytest.raises(InputError, match="label must be given, since this prior never went without it"):
        conditions.conditions_of(build("transformer", told), {"vendor": ["noto"]}, 1)
    fitted = build("histogram", labelled(2, 0.0))  # counts all images for no label
    assert conditions.conditions_of(fitted, {}, 1).tolist() == [[2]]


def test_samples_are_drawn_for_images_that_agree_with_what_is_asked(told_run):
    told = told_run.prior().conditioning
    table = told_run.table("train")
    generator = np.random.default_rng(0)
    plain = conditions.as_in_training(told_run, told, 400, generator)
    assert abs(plain[:, 0].mean() - table["label"].mean()) < 0.1
    assert {tuple(row) for row in plain[:, :2].tolist()} == set(zip(table["label"], table["vendor"], strict=True))
    square = conditions.as_in_training(told_run, told, 50, generator, {"words": "square", "vendor": "2"})
    assert set(square[:, 0]) == {1}  # whatever is square has that label
    assert set(square[:, 1]) == {1}
    assert set(conditions.described(told, square)["words"]) == {"square"}
    pair = conditions.as_in_training(
        told_run, told, 50, generator, {"words": "round square thing"}
    )  # no image has both
    assert set(pair[:, 0]) <= {0, 1}
    assert set(conditions.described(told, pair)["words"]) == {"round square thing"}


def test_the_stage_writes_what_each_sample_was_drawn_for(told_run, raw, monkeypatch):
    raw["samples"] |= {"count": 6, "batch_size": 4}
    raw["samples"]["conditions"] |= {"vendor": "2"}
    raw["samples"]["guidance"] |= {"words": 2.0, "label": 0.0}
    run = Run(Params(raw), runtime=told_run.runtime)
    samples.main(run)
    table = run.sample_conditions("samples")
    assert table["vendor_name"].tolist() == ["2"] * 6
    assert table["label"].tolist() == [-1] * 6  # its guidance is 0
    assert set(table["words"]) <= {"round thing", "square thing dark-skin-tone"}
    assert run.sample_labels("samples") is None
    assert run.sample_conditions("baseline") is None
    first = run.samples(kind="codes").copy()
    samples.main(run)
    assert np.array_equal(run.samples(kind="codes"), first)


def test_several_conditions_divide_among_forks(monkeypatch):
    monkeypatch.setattr("tessera.autoregression.sampling.PART", 1)
    prior, how = build("pixelsnail"), Sampling(guidance={"words": 2.0})
    alone = prior.sample(5, rng(), how, ROWS)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(prior.sample(5, rng(), how, ROWS), alone)
    finally:
        torch.set_num_threads(threads)


def test_old_recipes_of_unconditional_priors_are_read_and_others_are_told_to_be_trained_again(told_run):
    folder = told_run.folder("prior")
    recipe = files.read_json(folder / models.RECIPE)
    told = recipe["arguments"].pop("conditions")
    files.write_json(folder / models.RECIPE, recipe | {"arguments": recipe["arguments"] | {"classes": 0}})
    assert not models.conditioning_of(folder)
    files.write_json(folder / models.RECIPE, recipe | {"arguments": recipe["arguments"] | {"classes": len(told)}})
    with pytest.raises(InputError, match=r"did not know the names of its classes\. Train it again"):
        models.read_recipe(folder)
