"""Measures of samples: the contract over every file of the seam; each formula against a closed form or brute force."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from committed import project
from conftest import LABELS, ROOT, example, labelled, pictures

import stages.evaluation
from tessera import groups, near_copies, sets
from tessera.core import files, seams, trees
from tessera.core.errors import InputError
from tessera.core.params import read
from tessera.core.run import SPLITS, Run
from tessera.core.space import CodeSpace
from tessera.evaluation import coverage, frechet, likelihood, memorisation
from tessera.features import kernel, neighbours
from tessera.features.clipped import coverage as clipped_coverage

NAMES = [name for name in seams.names("evaluation") if name != "words"]  # that one needs a prior that is told words


def gaussian(n: int, f: int = 4, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (n, f))


def write_features(name: str, points: np.ndarray, families: np.ndarray, group: np.ndarray) -> None:
    """As the stage features writes them."""
    folder = files.ARTIFACTS / "features"
    files.save_array(folder / f"{name}.npy", points.astype(np.float32))
    files.save_array(folder / "families" / f"{name}.npy", families)
    files.save_array(folder / "groups" / f"{name}.npy", group)


def permuted(run: Run, name: str, order: np.ndarray) -> None:
    """Put the images of a set into another order."""
    group = files.load_array(files.ARTIFACTS / "features" / "groups" / f"{name}.npy")
    write_features(name, run.features(name)[order], run.families(name)[order], group[order])


def without_groups() -> None:
    """As of a data set without labels."""
    path = files.ARTIFACTS / "features" / "facts.json"
    files.write_json(path, {**files.read_json(path), "shown": []})
    shutil.rmtree(path.parent / "groups", ignore_errors=True)


@pytest.fixture
def measured(tiny_run):
    """`measured(name, **values)`: the report of a plug-in on tiny artefacts; features are Gaussian, groups alternate."""
    run: Run = tiny_run()
    sizes = {"train": 12, "val": 6, "test": 10, "reconstruction": 10, "samples": 16, "baseline": 14}
    decoded = {"reconstruction": "test", "reconstruction_val": "val", "reconstruction_train": "train"}
    for index, (name, n) in enumerate({**sizes, "reconstruction_val": 6, "reconstruction_train": 12}.items()):
        families = np.array([f"{decoded.get(name, name)} {i}" for i in range(n)])
        write_features(name, gaussian(n, run.scorer().dim, seed=index), families, np.arange(n) % 2)
    rows = [{"split": split, "name": f"{split} {i}", "family": f"{split} {i}", "label": i % 2, "label_name": LABELS[i % 2]}
            for split in SPLITS for i in range(sizes[split])]  # fmt: skip
    files.write_table(run.folder("dataset") / "table.csv", pd.DataFrame(rows))
    facts = {"distance": "fd_classifier", "groups": ["people", "rest"], "shown": ["people", "rest"]}
    files.write_json(run.folder("features") / "facts.json", facts)
    everything = pictures(sum(sizes.values()))
    files.save_array(run.folder("dataset") / "test.npy", everything[12:22])
    files.save_array(run.folder("reconstruction") / "test.npy", everything[12:22] // 2)
    files.save_array(run.folder("reconstruction") / "train.npy", everything[:12] // 2)
    files.write_json(run.folder("samples") / "facts.json", {"sets": ["samples", "baseline"]})
    files.save_array(run.folder("samples/samples") / "images.npy", everything[22:38])
    files.save_array(run.folder("samples/baseline") / "images.npy", everything[38:52])
    draws, (n, t) = np.random.default_rng(0), run.codes("train").shape
    for path, shape in (
        ("samples/samples/codes", (16, t)), ("samples/baseline/codes", (14, t)), ("codes/augmented", (2, n, t)),
        ("codes/test", (10, t)),
    ):  # fmt: skip
        codes = draws.integers(0, run.space.sizes[0], shape)
        files.save_array(files.ARTIFACTS / f"{path}.npy", codes.astype(np.int32))

    def measure(name: str, **values: Any) -> Any:
        module = seams.plugin("evaluation", name)
        return module.measure(example(module.Config, **values), tiny_run(name))

    return measure


def numbers(metrics: dict[str, Any]) -> list[float]:
    return [n for value in metrics.values() for n in (numbers(value) if isinstance(value, dict) else [float(value)])]


# the contract


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_finite_and_the_same_twice(measured, name):
    first, again = measured(name), measured(name)
    assert numbers(first.metrics)
    assert np.isfinite(numbers(first.metrics)).all()
    assert first.metrics == again.metrics
    assert first.tables
    for title, table in first.tables.items():
        assert table.equals(again.tables[title])


@pytest.mark.parametrize("name", NAMES)
def test_a_measure_says_which_metrics_it_gives(measured, name):
    """A threshold on another one is refused."""
    given = [metric for metric, _ in trees.numbers(measured(name).metrics)]
    declared = seams.plugin("evaluation", name).METRICS
    pattern = re.compile("|".join(re.escape(of).replace(r"\*", "[^.]*") for of in declared))
    assert given
    assert [metric for metric in given if not pattern.fullmatch(metric)] == []
    assert len({metric.rpartition(".")[2] for metric in given} & {of.rpartition(".")[2] for of in declared}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_stage_writes_the_report(measured, tiny_run, name):
    run = tiny_run(name)
    run.params.raw["evaluation"] = {name: example(seams.plugin("evaluation", name).Config).model_dump()}
    stages.evaluation.main(run)
    report, metrics = measured(name), files.read_json(Path(f"metrics/evaluation/{name}.json"))
    assert numbers(metrics) == pytest.approx(numbers(report.metrics), 1e-5)
    written = {path.name for path in Path(f"plots/evaluation/{name}").iterdir()}
    assert written == {f"{title}.csv" for title in report.tables} | {f"{title}.png" for title in report.pictures}


@pytest.mark.parametrize("name", ["coverage", "frechet", "likelihood", "memorisation"])
def test_figures_are_of_all_images_and_of_each_group(measured, name):
    """The groups' images add up to all; without labels there are figures of all alone, the same ones."""
    values = {"count": 1000} if name in ("coverage", "frechet") else {}
    report = measured(name, **values)
    assert list(report.metrics) == ["all", "people", "rest"]
    (table,) = [table for table in report.tables.values() if "group" in table]
    columns = [column for column in table if column in ("split", "space", "of", "first", "second", "fake")]
    for _, rows in table.groupby(columns, sort=False):
        images = rows.set_index("group")["images"]
        assert images["people"] + images["rest"] == images["all"]
    without_groups()
    assert measured(name, **values).metrics == {"all": report.metrics["all"]}


def test_a_measure_that_does_not_apply_says_so(tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(frechet, "requires", lambda params: "there is nothing to compare", raising=False)
    stages.evaluation.main(tiny_run("frechet"))
    assert files.read_json(Path("metrics/evaluation/frechet.json")) == {"applies": 0}
    assert "there is nothing to compare" in capsys.readouterr().out


def test_most_measures_import_no_torch(measured, raw):
    values = {
        "coverage": example(coverage.Config).model_dump(),
        "frechet": example(frechet.Config).model_dump(),
        "memorisation": example(memorisation.Config).model_dump(),
    }
    program = (
        "import json, sys; from tessera.core.params import Params; from tessera.core.run import Run\n"
        "raw = json.loads(sys.argv[1])\n"
        "for key in raw['evaluation']:\n"
        "    run = Run(Params(raw), key); run.write('evaluation', run.measure('evaluation'))\n"
        "assert 'tessera.evaluation.coverage' in sys.modules and 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", program, json.dumps({**raw, "evaluation": values})]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path("metrics/evaluation/memorisation.json").exists()


# Fréchet distance and KID


def standard(n: int, f: int, seed: int = 0) -> np.ndarray:
    """Points whose sample mean is 0 and sample covariance the identity, exactly."""
    points = gaussian(n, f, seed=seed)
    points -= points.mean(0)
    return points @ np.linalg.inv(np.linalg.cholesky(np.cov(points, rowvar=False))).T


def test_distance_of_gaussians_is_the_closed_form():
    """N(0, I) and N(m, diag(s^2)): |m|^2 + sum (s - 1)^2."""
    m, s = np.array([3.0, 0.0, -1.0, 0.5]), np.array([1.0, 2.0, 0.5, 3.0])
    found = frechet.distance(standard(50, 4), m + standard(70, 4, seed=1) * s)
    assert found == pytest.approx((m**2).sum() + ((s - 1) ** 2).sum(), abs=1e-6)


def test_distance_is_zero_on_itself_symmetric_and_grows_with_the_shift():
    a, b = gaussian(60), gaussian(60, shift=0.5, seed=1)
    assert frechet.distance(a, a) == pytest.approx(0, abs=1e-7)
    assert frechet.distance(a, b) == pytest.approx(frechet.distance(b, a), rel=1e-9)
    assert frechet.distance(a, b) < frechet.distance(a, b + 1) < frechet.distance(a, b + 2)


def test_distance_shrinks_with_the_number_of_images():
    """Why every set must have the same: equal distributions, and a tenth of the images."""
    few, many = (frechet.distance(gaussian(n), gaussian(n, seed=1)) for n in (30, 300))
    assert few > 4 * many


@pytest.mark.parametrize(("n", "m", "f"), [(80, 60, 5), (30, 40, 64), (64, 20, 64), (2, 3, 4)])
def test_distance_has_torch_fidelitys_value(n, m, f):
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    a, b = gaussian(n, f), 2 * gaussian(m, f, shift=0.3, seed=1)
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)), verbose=False)
    assert frechet.distance(a, b) == pytest.approx(theirs[KEY_METRIC_FID], rel=1e-4)


def test_sets_too_small_for_a_statistic_are_refused():
    with pytest.raises(InputError, match=r"at least 2 images in each set, got 5 and 1"):
        frechet.distance(gaussian(5), gaussian(1))


@pytest.mark.parametrize(("count", "used"), [(5, 5), (1000, 10)])  # 10: of test, the smallest
def test_every_set_has_the_same_number_of_images(measured, monkeypatch, count, used):
    compared = []
    monkeypatch.setattr(frechet, "distance", lambda a, b: compared.append((len(a), len(b))) or 0.0)
    report = measured("frechet", count=count)
    assert compared == [(used, used)] * 9 + [(5, 5)] * 18  # 9 pairs; each group has 5 test images
    assert {group: metrics["images"] for group, metrics in report.metrics.items()} == {
        "all": used,
        "people": 5,
        "rest": 5,
    }
    assert set(report.tables["pairs"].groupby("group")["images"].unique().explode().items()) == {
        ("all", used),
        ("people", 5),
        ("rest", 5),
    }


def test_headline_is_what_the_table_says(measured, tiny_run):
    report, run = measured("frechet", count=1000), tiny_run("frechet")
    table = report.tables["pairs"].set_index(["group", "first", "second"])
    metrics = report.metrics["all"]
    found = metrics["fd_classifier"]["reconstruction_test"]
    assert found == table.loc[("all", "reconstruction", "test"), "fd_classifier"]
    assert found == pytest.approx(frechet.distance(run.features("reconstruction"), run.features("test")))
    assert (
        metrics["fd_classifier"]["train_decoded"]
        == (table.loc[("all", "reconstruction_train", "reconstruction"), "fd_classifier"])
    )
    kid = metrics["kid_classifier"]
    assert kid["samples_test_low"] <= kid["samples_test"] <= kid["samples_test_high"]
    assert kid["samples_decoded"] == table.loc[("all", "samples", "reconstruction"), "kid_classifier"]


def test_figures_of_a_group_are_of_its_images(measured, tiny_run):
    report, run = measured("frechet", count=1000), tiny_run("frechet")
    real, test = (run.features(name)[run.groups(name)["rest"]] for name in ("reconstruction", "test"))
    found = report.metrics["rest"]
    assert found["fd_classifier"]["reconstruction_test"] == pytest.approx(frechet.distance(real, test))
    pairs = kernel.pairs(
        real, test, (np.arange(5), np.arange(5)), np.eye(5, dtype=bool)
    )  # of an image with itself: none
    (kid,) = kernel.estimate(pairs, *(np.ones((1, 5)),) * 2)
    assert found["kid_classifier"]["reconstruction_test"] == pytest.approx(kid)


@pytest.mark.parametrize("name", ["frechet", "coverage"])
def test_the_order_of_images_does_not_matter(measured, tiny_run, name):
    """Sets of ten images each, all of them compared: nothing is left to the seed."""
    run, generator = tiny_run(name), np.random.default_rng(0)
    others = ("train", "reconstruction_train", "samples", "baseline")
    for of in others:
        permuted(run, of, np.arange(10))
    first = measured(name, count=1000)
    for of in others:
        permuted(run, of, generator.permutation(10))
    order = generator.permutation(10)
    for of in ("test", "reconstruction"):
        permuted(run, of, order)
    again = measured(name, count=1000)
    assert numbers(again.metrics) == pytest.approx(numbers(first.metrics))


def test_a_control_without_images_of_a_group_is_left_out(measured, tiny_run, capsys):
    """Of the baseline 2 samples are people; of the samples none is of the rest."""
    run = tiny_run("frechet")
    write_features("baseline", run.features("baseline"), run.families("baseline"), np.arange(14) >= 2)
    write_features("samples", run.features("samples"), run.families("samples"), np.zeros(16, int))
    report = measured("frechet", count=1000)
    assert "baseline_test" in report.metrics["all"]["fd_classifier"]
    assert "baseline_test" not in report.metrics["people"]["fd_classifier"]
    assert report.metrics["rest"] == {"images": 0}
    said = capsys.readouterr().out
    assert "evaluation.frechet: baseline, group people: not measured, there are fewer than 5 images" in said
    assert "evaluation.frechet: group rest: not measured, a set has only 0 images" in said
    pairs = report.tables["pairs"].set_index(["group", "first", "second"]).sort_index()
    for group in ("people", "rest"):  # as in coverage, a row that is not measured is there and empty
        assert list(pairs.loc[group].index) == list(pairs.loc["all"].index)
    assert pairs.loc[("people", "baseline", "test"), "says"] == "not measured"
    assert pairs.loc[("people", "baseline", "test"), ["fd_classifier", "kid_classifier"]].isna().all()
    assert pairs.loc[("people", "train", "test"), ["fd_classifier", "kid_classifier"]].notna().all()
    assert set(pairs.loc["rest", "says"]) == {"not measured"}
    covered = measured("coverage")
    table = covered.tables["coverage"].set_index(["group", "fake"])
    assert table.loc[("people", "baseline"), "images"] == 5
    assert table.loc[("people", "baseline")].isna().sum() == 1
    assert covered.metrics["rest"] == {"images": 0, "samples": {}, "reconstruction_train": {}}
    assert "evaluation.coverage: samples, group rest: not measured, there are too few images" in capsys.readouterr().out


def test_a_figure_whose_interval_spans_all_rows_says_nothing(measured, tiny_run, capsys):
    """All sets from one distribution, and then samples far from it."""
    run = tiny_run("frechet")
    quiet = measured("frechet", count=1000).tables["pairs"].set_index(["group", "first", "second"])
    low, value, high = (
        quiet.loc[("all", slice(None), "reconstruction"), f"kid_classifier{end}"].to_numpy()
        for end in ("_low", "", "_high")
    )
    spans = [all(low[i] <= other <= high[i] for j, other in enumerate(value) if j != i) for i in range(len(value))]
    says = quiet.loc[("all", slice(None), "reconstruction"), "says"]
    assert list(says) == ["nothing" if one else "something" for one in spans]
    assert any(spans)
    assert "against reconstruction, group all, says nothing: its interval" in capsys.readouterr().out
    write_features("samples", run.features("samples") + 9, run.families("samples"), np.arange(16) % 2)
    far = measured("frechet", count=1000).tables["pairs"].set_index(["group", "first", "second"])
    assert far.loc[("all", "samples", "reconstruction"), "says"] == "something"


def test_the_distance_is_never_called_fid_on_other_features_than_inceptions(measured):
    assert set(measured("frechet").metrics["all"]) == {"images", "fd_classifier", "kid_classifier"}
    path = Path("artifacts/features/facts.json")
    files.write_json(path, {**files.read_json(path), "distance": "fid"})
    report = measured("frechet")
    assert set(report.metrics["all"]) == {"images", "fid", "kid"}
    assert {"fid", "kid", "kid_low"} <= set(report.tables["pairs"].columns)


# nearest neighbours


@pytest.mark.parametrize("block", [3, 1000])
def test_nearest_is_the_nearest(monkeypatch, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    points, references = gaussian(8), gaussian(11, seed=1)
    index, distance = neighbours.nearest(points, references)
    expected = [[math.dist(p, r) for r in references] for p in points]
    assert list(index) == [row.index(min(row)) for row in expected]
    np.testing.assert_allclose(distance, np.min(expected, axis=1))


def test_a_copy_is_at_distance_zero_also_of_bytes():
    pixels = pictures(9).reshape(9, -1)
    index, distance = neighbours.nearest(pixels[[4, 2]], pixels)
    assert list(index) == [4, 2]
    assert list(distance) == [0, 0]
    features = 1e3 + gaussian(9).astype(np.float32)
    assert neighbours.nearest(features[3:], features)[1].max() == 0


def test_subsets_are_without_repetition():
    chosen = neighbours.subset(np.random.default_rng(0), 100, 60)
    assert len(set(chosen)) == 60
    assert list(neighbours.subset(np.random.default_rng(0), 4, 6)) == [0, 1, 2, 3]


# coverage


@pytest.mark.parametrize(
    ("wanted", "most", "expected"), [(5, 182, 5), (5, 5, 5), (5, 2, 2), (5, 1, 1), (5, 0, 1), (1, 0, 1)]
)
def test_what_few_images_allow_is_said(capsys, wanted, most, expected):
    assert neighbours.fewer("evaluation.coverage.neighbours", wanted, most, 9) == expected
    said = f"evaluation.coverage.neighbours: {expected} instead of {wanted}, since the smallest set has 9 images\n"
    assert capsys.readouterr().out == (said if expected < wanted else "")


def test_coverage_compares_equal_numbers_against_reconstructions(measured, tiny_run):
    report, run = measured("coverage", count=1000, neighbours=3), tiny_run("coverage")
    table = report.tables["coverage"].set_index(["group", "fake"])
    assert set(table.loc["all", "images"]) == {10}
    assert set(table.loc["all"].index) == {"samples", "reconstruction_train", "baseline"}
    for group in ("all", "people", "rest"):
        assert report.metrics[group]["samples"] == {
            "clipped_coverage": table.loc[(group, "samples"), "clipped_coverage"]
        }
    path = run.folder("features") / "baseline.npy"
    files.save_array(path, run.features("reconstruction")[[*range(10), 0, 1, 2, 3]])  # copies of the real ones
    found = measured("coverage", count=14, neighbours=3).tables["coverage"].set_index(["group", "fake"])
    real = run.features("reconstruction")
    chosen = sets.equal(run, "coverage", 14, ("reconstruction", "samples", "reconstruction_train"), ("baseline",))[
        "all"
    ]
    points = real[chosen["reconstruction"]], run.features("baseline")[chosen["baseline"]]
    assert found.loc[("all", "baseline"), "clipped_coverage"] == pytest.approx(
        clipped_coverage(*points, singles(10), 3)
    )


def test_a_decoder_of_one_image_has_no_coverage_and_the_log_says_why(measured, tiny_run, capsys):
    run = tiny_run("coverage")
    for name in ("reconstruction", "reconstruction_train", "samples", "baseline"):
        write_features(name, 0 * run.features(name) + 3, run.families(name), np.arange(len(run.features(name))) % 2)
    found = measured("coverage", count=1000)
    assert found.metrics["all"]["samples"] == {"clipped_coverage": 0}
    assert "group all: 0, since the reconstructions of most test images are the same" in capsys.readouterr().out


def singles(n: int) -> np.ndarray:
    return np.array([f"family {index}" for index in range(n)])


# memorisation


def test_copies_are_at_ratio_zero_and_all_too_near():
    train, test = gaussian(200), gaussian(300, seed=1)
    unseen = neighbours.nearest(test, train)[1]
    found = memorisation.compare(neighbours.nearest(train[:50], train)[1], unseen, 0.01)
    assert found == {"median_ratio": 0, "near_fraction": 1}


def test_new_draws_are_as_far_as_test_images():
    train, test = gaussian(400), gaussian(2000, seed=1)
    unseen = neighbours.nearest(test, train)[1]
    found = memorisation.compare(neighbours.nearest(gaussian(2000, seed=2), train)[1], unseen, 0.05)
    assert found["median_ratio"] == pytest.approx(1, abs=0.05)
    assert found["near_fraction"] == pytest.approx(0.05, abs=0.02)


def test_half_copies_are_found_in_the_share():
    train, test = gaussian(400), gaussian(400, seed=1)
    samples = np.concatenate([train[:100], gaussian(100, seed=2)])
    distances, unseen = (neighbours.nearest(points, train)[1] for points in (samples, test))
    assert memorisation.compare(distances, unseen, 0.01)["near_fraction"] == pytest.approx(0.5, abs=0.05)


def test_copies_are_found_where_some_test_images_have_a_twin():
    found = memorisation.compare(np.zeros(10), np.concatenate([np.zeros(5), np.ones(95)]), 0.01)
    assert found == {"median_ratio": 0, "near_fraction": 1}


def test_pixel_distance_is_rmse_in_grey_levels(measured, tiny_run):
    run = tiny_run("memorisation")
    train = np.full((12, 8, 8, 3), 100, np.uint8)
    files.save_array(run.folder("dataset") / "train.npy", train)
    files.save_array(run.folder("dataset") / "test.npy", train[:10] + np.uint8(10))
    files.save_array(run.folder("reconstruction") / "test.npy", train[:10] + np.uint8(5))
    files.save_array(run.folder("reconstruction") / "train.npy", train + np.uint8(20))
    files.save_array(run.folder("samples/samples") / "images.npy", np.full((16, 8, 8, 3), 100, np.uint8))
    report = measured("memorisation")
    pixels = report.tables["compared"].query("group == 'all' and space == 'pixels'").set_index("of")
    assert pixels.loc["samples", "test_median"] == pytest.approx(10)
    assert pixels.loc["reconstruction", "median_ratio"] == pytest.approx(0.5)
    assert pixels.loc["copies", ["median_ratio", "near_fraction"]].tolist() == pytest.approx(
        [2, 0]
    )  # decoded: not found
    assert report.metrics["all"]["pixels"] == {"median_ratio": 0, "near_fraction": 1}


@pytest.mark.parametrize("block", [3, 1000])
def test_nearest_codes_are_the_nearest_by_the_share_that_differs(monkeypatch, block):
    monkeypatch.setattr(near_copies, "BLOCK", block)
    draws = np.random.default_rng(0)
    codes, *references = (draws.integers(0, 3, (n, 7)).astype(np.int32) for n in (8, 11, 0, 5))
    expected = [min(sum(a != b for a, b in zip(own, other, strict=True)) for part in references for other in part) / 7
                for own in codes]  # fmt: skip
    np.testing.assert_allclose(near_copies.nearest_codes(codes, *references), expected)


def in_codes(measured: Any, run: Run, samples: np.ndarray, train: np.ndarray, augmented: np.ndarray) -> pd.DataFrame:
    """Table `compared` of the codes, by row; test images are drawn as training images are."""
    test = np.random.default_rng(1).integers(0, 4, (200, 12))
    for path, codes in {
        "codes/train": train, "codes/augmented": augmented, "codes/test": test, "samples/samples/codes": samples,
        "samples/baseline/codes": test[::-1],
    }.items():  # fmt: skip
        files.save_array(files.ARTIFACTS / f"{path}.npy", codes.astype(np.int32))
    without_groups()
    for of, n in {"test": 200, "samples": len(samples), "baseline": 200, "train": len(train)}.items():
        files.save_array(run.folder("features") / f"{of}.npy", gaussian(n, run.scorer().dim).astype(np.float32))
    images = np.zeros((len(train), 8, 8, 3), np.uint8)
    for path in ("dataset/train", "reconstruction/train"):
        files.save_array(files.ARTIFACTS / f"{path}.npy", images)
    for path, n in (("dataset/test", 200), ("reconstruction/test", 200), ("samples/baseline/images", 200)):
        files.save_array(files.ARTIFACTS / f"{path}.npy", np.ones((n, 8, 8, 3), np.uint8))
    files.save_array(files.ARTIFACTS / "samples/samples/images.npy", np.ones((len(samples), 8, 8, 3), np.uint8))
    report = measured("memorisation", quantile=0.05)
    table = report.tables["compared"].query("group == 'all' and space == 'codes'").set_index("of")
    assert report.metrics["all"]["codes"] == dict(table.loc["samples", ["median_ratio", "near_fraction"]])
    return table


@pytest.mark.parametrize("copied", ["plain", "augmented", "half", "none"])
def test_copied_codes_are_found_also_of_augmented_images(measured, tiny_run, copied):
    draws = np.random.default_rng(0)
    train, augmented, new = (
        draws.integers(0, 4, (50, 12)),
        draws.integers(0, 4, (3, 50, 12)),
        draws.integers(0, 4, (200, 12)),
    )
    samples = {"plain": train, "augmented": augmented[2], "half": np.concatenate([new[:50], augmented[0]]), "none": new}
    table = in_codes(measured, tiny_run("memorisation"), samples[copied], train, augmented)
    median, near = table.loc["samples", ["median_ratio", "near_fraction"]]
    if copied in ("plain", "augmented"):
        assert (median, near) == (0, 1)
    else:
        # distances are few different numbers, so that more than the quantile are as near
        usual = table.loc["samples", "test_near_fraction"]
        assert 0.05 <= usual < 0.2
        assert near == pytest.approx(0.5 * (1 + usual) if copied == "half" else usual, abs=0.07)
    assert table.loc["copies", ["median_ratio", "near_fraction"]].tolist() == [0, 1]


def test_without_augmented_codes_only_plain_ones_are_references(measured, tiny_run):
    draws = np.random.default_rng(0)
    train, augmented = draws.integers(0, 4, (50, 12)), draws.integers(4, 8, (1, 50, 12))
    for kept, near in ((augmented, 1), (augmented[:0], 0)):
        table = in_codes(measured, tiny_run("memorisation"), augmented[0], train, kept)
        assert table.loc["samples", "near_fraction"] == near
        assert table.loc["copies", "near_fraction"] == 1


def test_the_criterion_on_copies_reads_the_codes():
    """In the other spaces decoded copies pass it."""
    found = read(project() / "params.yaml")["criteria"]["thresholds"]["near_copies"]
    assert found["metric"] == "evaluation/memorisation:all.codes.near_fraction"


def test_samples_are_compared_with_the_neighbours_that_they_were_drawn_for(measured, tiny_run):
    """Those of `people` recite the codes of theirs and have its features, those of `rest` have no code in common with it and are at
    distance 20."""
    run = tiny_run("memorisation")
    assert "neighbours" not in measured("memorisation").metrics["all"]
    told, near = np.arange(16) % 12, (np.arange(12)[:, None] + [2, 4]) % 12
    table = pd.DataFrame({"neighbour": told, "neighbour_name": [f"train {i}" for i in told]})
    files.write_table(run.folder("samples/samples") / "conditions.csv", table)
    files.save_array(run.folder("codes") / "neighbours/train.npy", near.astype(np.int32))
    codes, recited = np.array(run.codes("train")), (np.arange(16) % 2 == 0)[:, None]
    files.save_array(run.folder("samples/samples") / "codes.npy", np.where(recited, codes[told], codes[told] + 1))
    train = 10.0 * np.arange(12)[:, None] * np.eye(1, run.scorer().dim)
    for of, points in {"train": train, "reconstruction_train": train}.items():
        write_features(of, points, run.families(of), np.arange(12) % 2)
    points = train[told] + np.where(recited, 0.0, 20 * np.eye(1, run.scorer().dim, 1))
    write_features("samples", points, run.families("samples"), np.arange(16) % 2)
    report = measured("memorisation", pairs=4)
    found = {group: metrics["neighbours"] for group, metrics in report.metrics.items()}
    for group, members in (("all", range(12)), ("people", range(0, 12, 2)), ("rest", range(1, 12, 2))):
        each = [[(codes[i] == codes[j]).mean() for j in near[i]] for i in members]
        assert found[group]["equal_codes_train"] == pytest.approx(np.mean(each))
        assert found[group]["equal_codes_nearest"] == pytest.approx(np.mean(np.array(each)[:, 0]))
        far = np.mean([[10 * abs(i - j) for j in near[i]] for i in members])
        equal, distance = {"all": (0.5, 10), "people": (1, 0), "rest": (0, 20)}[group]
        assert found[group]["equal_codes"] == pytest.approx(equal)
        assert found[group]["distance_ratio"] == pytest.approx(distance / far)
    assert report.tables["neighbours"]["of"].tolist() == ["samples", "train", "nearest"] * 3
    declared = seams.plugin("evaluation", "memorisation").METRICS
    assert {f"*.neighbours.{name}" for name in found["all"]} <= set(declared)
    np.testing.assert_array_equal(
        report.pictures["neighbours"][72:136, 4:68], run.images("train")[0].repeat(8, 0).repeat(8, 1)
    )


def test_features_are_compared_with_decoded_training_images(measured, tiny_run):
    """Copies are at distance 0 there; samples of a group are compared with test images of the group, and with all of training."""
    run = tiny_run("memorisation")
    decoded, real = run.features("reconstruction_train"), run.features("reconstruction")
    write_features("samples", decoded[[3] * 16], run.families("samples"), np.arange(16) % 2)
    report = measured("memorisation")
    table = report.tables["compared"].set_index(["group", "space", "of"])
    for group in ("all", "people", "rest"):
        assert report.metrics[group]["features"] == {"median_ratio": 0, "near_fraction": 1}
        assert table.loc[(group, "features", "copies"), "median_ratio"] == 0
        unseen = neighbours.nearest(real[run.groups("reconstruction")[group]], decoded)[1]
        assert table.loc[(group, "features", "samples"), "test_median"] == pytest.approx(np.median(unseen))
    left = pictures(12)[3].repeat(8, 0).repeat(8, 1)  # the training image that is nearest to all samples
    np.testing.assert_array_equal(
        report.pictures["pairs"][72:136, 4:68], run.images("train")[3].repeat(8, 0).repeat(8, 1)
    )
    assert left.shape == (64, 64, 3)


@pytest.mark.parametrize("seen", [12, 8])
def test_how_many_training_images_are_looked_at_is_said(measured, tiny_run, capsys, seen):
    """Of 12; two augmented copies of each have codes too."""
    run = tiny_run("memorisation")
    write_features(
        "reconstruction_train", run.features("train")[:seen], run.families("train")[:seen], np.arange(seen) % 2
    )
    table = measured("memorisation").tables["compared"]
    n = len(run.codes("train"))
    for space, number in {"features": seen, "pixels": 12, "codes": 3 * n}.items():
        assert set(table.loc[table["space"] == space, "references"]) == {number}
    said = (
        "in features 8 of 12 training images are looked at, and copies of others are not found; raise features.decoded"
    )
    assert (said in capsys.readouterr().out) == (seen == 8)


@pytest.mark.parametrize(("most", "seen"), [(3, {"all": 3, "people": 2, "rest": 1}), (1, {"all": 1, "people": 1})])
def test_of_a_large_test_split_some_images_are_compared(measured, monkeypatch, most, seen):
    """Else the time would grow as the square of the number of images. A group that has none of them has no figures."""
    monkeypatch.setattr(memorisation, "COMPARED", most)
    report = measured("memorisation")
    table = report.tables["compared"].query("space == 'pixels' and of == 'reconstruction'")
    assert dict(zip(table["group"], table["images"], strict=True)) == seen
    assert list(report.metrics) == list(seen)
    copies = report.tables["compared"].query("space == 'codes' and of == 'copies' and group == 'all'")
    assert copies["images"].to_list() == [most]


def test_a_group_without_samples_has_no_figures(measured, tiny_run):
    run = tiny_run("memorisation")
    write_features("samples", run.features("samples"), run.families("samples"), np.zeros(16, int))
    report = measured("memorisation")
    assert report.metrics["rest"] == {"features": {}, "pixels": {}, "codes": {}}
    assert set(report.metrics["people"]["codes"]) == {"median_ratio", "near_fraction"}
    assert "samples" not in set(report.tables["compared"].query("group == 'rest'")["of"])


def test_histograms_are_shares(measured):
    table = measured("memorisation").tables["distances"]
    shown = {"features": ["copies"], "pixels": ["reconstruction", "copies"], "codes": ["copies"]}
    assert set(table["space"]) == set(shown)
    for space, part in table.groupby("space"):
        np.testing.assert_allclose(part[["test", "samples", "baseline", *shown[space]]].sum(), 1)


@pytest.mark.parametrize(("length", "each"), [(16, 1), (64, 2), (100, 3)])
def test_bins_hold_as_many_possible_distances(length, each):
    far = np.arange(length + 1) / length
    shares = memorisation._histogram({"all": memorisation.Far(far, {}, 1)}, 1 / length)["all"].to_numpy()
    assert shares.sum() == pytest.approx(1)
    assert shares[:-1] == pytest.approx(each / (length + 1))


def test_the_closest_pairs_stand_over_one_another():
    samples, train = pictures(6, 64, 64), 255 - pictures(5, 64, 64)
    sheet = memorisation.closest(samples, train, np.array([0, 1, 2, 3, 4, 0]), np.array([5.0, 1, 4, 0, 3, 2]), 2)
    assert sheet.shape == (2 * 68 + 4, 2 * 68 + 4, 3)
    for column, index in enumerate([3, 1]):
        left = 4 + 68 * column
        np.testing.assert_array_equal(sheet[4:68, left : left + 64], samples[index])
        np.testing.assert_array_equal(sheet[72:136, left : left + 64], train[index])


# likelihood


class Fixed:
    """A prior that draws every code by `p`, and looks at labels where it is told them."""

    exact = True

    def __init__(self, p: list[float], classes: int = 0) -> None:
        self.nats, self.conditioning, self.seen = -torch.tensor(p).double().log(), labelled(classes), []

    def log_prob(self, codes: torch.Tensor, conditions: torch.Tensor | None) -> torch.Tensor:
        self.conditioning.require(conditions, len(codes))
        self.seen += [] if conditions is None else conditions[:, 0].tolist()
        return -self.nats[codes].sum(1)


def likelihood_of(prior: Fixed, codes: dict[str, np.ndarray], groups: Any = None, **values: Any) -> Any:
    run = SimpleNamespace(
        prior=lambda: prior,
        codes=codes.__getitem__,
        table=lambda split: pd.DataFrame({"name": "", "label": np.arange(len(codes[split]))}),
        groups=groups or (lambda split: {"all": np.arange(len(codes[split]))}),
        space=CodeSpace(((1, 2), (2, 2)), (4, 4)),
        device="cpu",
    )
    return likelihood.measure(example(likelihood.Config, **values), run)


@pytest.fixture
def codes() -> dict[str, np.ndarray]:
    draws, p = np.random.default_rng(0), [0.5, 0.25, 0.125, 0.125]
    return {split: draws.choice(4, (n, 6), p=p) for split, n in zip(SPLITS, (64, 9, 7), strict=True)}


def test_a_uniform_prior_needs_log2_k_bits_per_code(codes):
    report = likelihood_of(Fixed([0.25] * 4), codes)
    table = report.tables["splits"].set_index("split")
    assert set(table.index) == set(SPLITS)
    assert list(table["nll_bits_per_code"]) == pytest.approx([2] * 3)
    assert list(table["nll_bits_per_image"]) == pytest.approx([12] * 3)
    assert table.loc["val", "recall_bits_per_code"] == pytest.approx(6 / 6)  # log2 of 64 images, over 6 codes
    assert report.metrics["all"]["gap_bits_per_code"] == pytest.approx(0)
    assert report.metrics["all"]["val"]["nll_bits_per_code"] == table.loc["val", "nll_bits_per_code"]


def test_entropy_is_that_of_each_grid_in_each_split(codes):
    metrics = likelihood_of(Fixed([0.25] * 4), codes).tables["splits"].set_index("split").T
    for split in SPLITS:
        parts = (codes[split][:, :2], codes[split][:, 2:])
        expected = [scipy.stats.entropy(np.bincount(part.ravel()), base=2) for part in parts]
        assert metrics[split]["entropy_bits_per_image"] == pytest.approx(2 * expected[0] + 4 * expected[1])
        assert metrics[split]["fraction_saved"] == pytest.approx(1 - 12 / (2 * expected[0] + 4 * expected[1]))


def test_knowing_frequencies_alone_saves_nothing():
    codes = {split: np.tile([0, 1, 0, 1, 0, 1], (3, 1)) for split in SPLITS}
    metrics = likelihood_of(Fixed([0.5, 0.5, 1e-9, 1e-9]), codes).metrics["all"]
    assert metrics["test"]["fraction_saved"] == pytest.approx(0, abs=1e-9)


def test_codes_without_any_entropy_have_nothing_to_save():
    codes = {split: np.zeros((3, 6), np.int64) for split in SPLITS}
    assert likelihood_of(Fixed([0.25] * 4), codes).metrics["all"]["val"]["fraction_saved"] == 0


def test_the_gap_is_test_minus_train():
    """By hand: 1, 2 and 3 bits a code on train, val and test."""
    codes = {split: np.full((3, 6), code) for code, split in enumerate(("train", "val", "test"))}
    metrics = likelihood_of(Fixed([0.5, 0.25, 0.125, 0.125]), codes).metrics["all"]
    assert metrics["gap_bits_per_code"] == pytest.approx(3 - 1)


def test_batches_do_not_matter_and_labels_go_along(codes):
    priors = [Fixed([0.4, 0.3, 0.2, 0.1], classes=64) for _ in range(2)]
    whole, parts = (likelihood_of(p, codes, batch_size=n).metrics for p, n in zip(priors, (100, 5), strict=True))
    assert numbers(whole) == pytest.approx(numbers(parts))
    assert priors[0].seen == priors[1].seen == [*range(64), *range(9), *range(7)]


def test_a_bound_says_so_in_names_and_table(codes):
    prior = Fixed([0.25] * 4)
    prior.exact = False
    report = likelihood_of(prior, codes)
    metrics = report.metrics["all"]
    assert set(metrics) == {"val", "test", "gap_bound_bits_per_code"}
    assert set(metrics["test"]) == {"nll_bound_bits_per_code", "fraction_saved_bound"}
    assert metrics["test"]["nll_bound_bits_per_code"] == pytest.approx(2)
    exact = likelihood_of(Fixed([0.25] * 4), codes).metrics["all"]
    assert metrics["val"]["fraction_saved_bound"] == exact["val"]["fraction_saved"]
    assert set(report.tables["splits"]["likelihood"]) == {"bound"}


def test_bits_of_all_are_the_mean_over_groups():
    """By hand: images of the code 0 need 1 bit a code, those of the code 3 need 3; a third of the images are of the second kind."""
    codes = {
        split: np.repeat([[0] * 6, [0] * 6, [3] * 6], n, axis=0) for n, split in zip((4, 3, 2), SPLITS, strict=True)
    }
    groups = lambda split: {name: np.flatnonzero(np.isin(codes[split][:, 0], of))  # noqa: E731
                            for name, of in {"all": [0, 3], "people": [0], "rest": [3], "empty": []}.items()}  # fmt: skip
    report = likelihood_of(Fixed([0.5, 0.25, 0.125, 0.125]), codes, groups)
    bits = {group: metrics["test"]["nll_bits_per_code"] for group, metrics in report.metrics.items()}
    assert bits == pytest.approx({"all": 5 / 3, "people": 1, "rest": 3})
    images = report.tables["splits"].set_index(["group", "split"])["images"]
    assert images["people", "val"] + images["rest", "val"] == images["all", "val"]
    some = likelihood_of(Fixed([0.5, 0.25, 0.125, 0.125]), codes, groups, count=3)  # of each split: 0, 0, 3
    assert some.metrics["people"]["val"]["nll_bits_per_code"] == pytest.approx(1)


def test_of_a_large_split_some_images_stand_for_all():
    """Three of 8, spread evenly: the first, a middle, the last."""
    codes = {split: np.repeat([[0] * 6, [3] * 6], 4, axis=0) for split in SPLITS}
    prior = Fixed([0.5, 0.25, 0.125, 0.125], classes=8)
    likelihood_of(prior, codes, count=3)
    assert prior.seen == [0, 3, 7] * 3


def test_configs_of_this_seam_have_bounds():
    for module, values in ((frechet, {"count": 3}), (coverage, {"neighbours": 0}), (memorisation, {"quantile": 1.0})):
        with pytest.raises(ValueError, match=next(iter(values))):
            example(module.Config, **values)


def others_added(run: Run) -> None:
    """Images by another vendor behind those of val and test, with codes, pixels and features of their own."""
    table = files.read_table(run.folder("dataset") / "table.csv", text=("split", "name", "family", "label_name"))
    rows = [table]
    for split, of in (("val", "reconstruction_val"), ("test", "reconstruction")):
        codes, features = run.codes(split), gaussian(4, run.scorer().dim, shift=9.0, seed=7)
        for folder in ("dataset", "reconstruction"):
            path = run.folder(folder) / f"{split}.npy"
            if path.exists():
                files.save_array(path, np.concatenate([files.load_array(path), pictures(4)]))
        files.save_array(run.folder("codes") / f"{split}.npy", np.concatenate([codes, codes[:4][::-1]]))
        for name in (split, of):
            families = np.append(run.families(name), [f"other {i}" for i in range(4)])
            group = files.load_array(run.folder("features") / "groups" / f"{name}.npy")
            group = np.append(group, [groups.OTHERS] * 4)
            write_features(name, np.concatenate([run.features(name), features]), families, group)
        rows.append(pd.DataFrame([{"split": split, "name": f"other {i}", "family": f"other {i}", "label": 0,
                                   "label_name": LABELS[0]} for i in range(4)]))  # fmt: skip
    files.write_table(run.folder("dataset") / "table.csv", pd.concat(rows, ignore_index=True))


@pytest.mark.parametrize("name", NAMES)
def test_images_by_other_vendors_than_samples_are_compared_with_take_no_part(measured, tiny_run, name):
    before = measured(name)
    others_added(tiny_run())
    assert len(tiny_run().codes("test")) == 14
    assert measured(name).metrics == before.metrics
