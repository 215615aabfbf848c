"""The first section: the most important numbers, each beside a number to compare it with, and both verdicts."""

from __future__ import annotations

from fnmatch import fnmatchcase
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from stages.report import definitions, elements, verdicts
from stages.report.prior import ORACLE
from tessera.core import trees

if TYPE_CHECKING:
    from tessera.core.run import Run


class Figure(NamedTuple):
    """One number of the headline: a file of metrics/, a pattern of names in it, a format, and a text around the number."""

    file: str
    name: str
    form: str
    words: str = "{}"


class Headline(NamedTuple):
    """A number, and a number to compare it with."""

    title: str
    figure: Figure
    beside: Figure | None = None


HEADLINE = (
    Headline("PSNR of reconstructions, of the mean error, test", Figure("reconstruction", "test.psnr_db", ".2f", "{} dB"),
             Figure("reconstruction", "test.psnr_db_from_z", ".2f", "{} dB without quantization")),
    Headline("PSNR of reconstructions, mean of the images' own, test",
             Figure("reconstruction", "test.psnr_db_per_image", ".2f", "{} dB")),
    Headline("SSIM of reconstructions, uniform windows, test", Figure("reconstruction", "test.ssim", ".3f"),
             Figure("reconstruction", "test.ssim_gaussian", ".3f", "{} with Gaussian windows")),
    Headline("codes in use, validation", Figure("tokenizer", "val.usage", ".1%"),
             Figure("tokenizer", "val.perplexity", ".0f", "perplexity {}")),
    Headline("prior, bits per code, validation", Figure("prior", "val.nll_bits_per_code", ".2f"),
             Figure("prior", "train.nll_bits_per_code", ".2f", "{} on train")),
    Headline("prior, bits per code at most, validation", Figure("prior", "val.nll_bound_bits_per_code", ".2f"),
             Figure("prior", "train.nll_bound_bits_per_code", ".2f", "{} on train")),
    Headline("prior, most likely code is right, validation", Figure("prior", "val.accuracy", ".1%"),
             Figure(f"diagnostics/{ORACLE}", "grid_*.better", ".1%", "{} by copying a neighbour")),
    Headline("rung of the samples on the ladder of damage, test", Figure("evaluation/ladder", "test.all.rung", ".1f"),
             Figure("evaluation/ladder", "test.all.train_rung", ".1f", "{} of real training images")),
    Headline("samples told from real images by a linear classifier, test",
             Figure("evaluation/two_sample", "test.all.features", ".0%"),
             Figure("evaluation/two_sample", "test.all.features_train", ".0%", "{} of real training images in their place")),
    Headline("Fréchet distance, samples to test", Figure("evaluation/frechet", "all.f[di]*.samples_test", ".2f"),
             Figure("evaluation/frechet", "all.f[di]*.train_test", ".2f", "{} from train to test")),
    Headline("clipped coverage of the samples", Figure("evaluation/coverage", "all.samples.clipped_coverage", ".2f"),
             Figure("evaluation/coverage", "all.reconstruction_train.clipped_coverage", ".2f", "{} of training images")),
    Headline("distance to training images, samples over test",
             Figure("evaluation/memorisation", "all.features.median_ratio", ".2f"),
             Figure("evaluation/memorisation", "all.codes.near_fraction", ".1%", "{} are suspiciously near, by codes")),
)  # fmt: skip


def body(run: Run) -> str:
    """One tile per number that this run has, with a link to its definition, and under them the verdicts."""
    tiles = []
    for line in HEADLINE:
        value = _figure(run, line.figure)
        if value is not None:
            beside = _figure(run, line.beside) if line.beside else None
            note = f'<dd class="beside">{escape(beside)}</dd>' if beside else ""
            title = f'<a href="#{_definition(line.figure)}">{escape(line.title)}</a>'
            tiles.append(f"<div><dt>{title}</dt><dd>{escape(value)}</dd>{note}</div>")
    return f'<dl class="tiles">{"".join(tiles)}</dl>\n<ul class="plain">{verdicts.lines()}</ul>\n'


def _definition(figure: Figure) -> str:
    """The anchor of what defines a number: the plug-in that measures it, or the list of definitions."""
    seam, _, key = figure.file.partition("/")
    return f"{seam}-{key}" if key else definitions.anchor(figure.name.rpartition(".")[2])


def _figure(run: Run, figure: Figure) -> str | None:
    """The number as text, once per grid that it matches; None if its plug-in is not run or does not apply."""
    seam, _, key = figure.file.partition("/")
    if key and key not in run.params.keys(seam):
        return None
    metrics = dict(trees.leaves(elements.metrics(figure.file)))
    found = [format(value, figure.form) for name, value in metrics.items() if fnmatchcase(name, figure.name)]
    return figure.words.format(" / ".join(found)) if found else None
