"""Tab Training: the curves of a training, while it goes on and after it. NumPy and pandas only.

Those under way are found in the scratch, which the experiments of a queue and `--temp` share with the repository; those that are
over are the plots of the workspace.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from tessera.core import files
from tessera.runtime import live
from tessera.runtime.live import Progress

NOTHING = (
    "Nothing has been trained here yet. `dvc repro tokenizer` trains a tokenizer, and its curves grow here meanwhile."
)
LOSSES = "Loss terms"
# title of a chart -> the terms in it, by how their names begin; all other terms are losses
CHARTS = {
    LOSSES: (),
    "PSNR, dB": ("psnr_db",),
    "SSIM": ("ssim",),
    "Perplexity": ("perplexity",),
    "Usage": ("usage",),
    "Bits per code": ("nll_bits_per_code", "nll_bound_bits_per_code"),
    "Accuracy": ("accuracy", "majority"),
    "Gradient norm": ("gradient_norm",),
    "Learning rate": ("lr",),
}
LEFT_OUT = ("epoch", "bound", "nll_bits_per_image", "nll_bound_bits_per_image")  # the same as bits per code


class Training(NamedTuple):
    """A training: the folder of its run, its curve in `plots/`, and how far it is; None if it is over."""

    folder: Path
    curve: str
    progress: Progress | None

    @property
    def key(self) -> str:
        """The same while it goes on and when it is over."""
        return f"{self.folder}:{self.curve}"

    @property
    def title(self) -> str:
        name = self.curve.removesuffix("/curve")
        if self.progress is None:
            return f"{name}, of the workspace"
        if self.folder == Path.cwd():
            return f"{name}, under way"
        return f"{name}, under way in {self.progress.experiment or self.folder.name}"

    @property
    def path(self) -> Path:
        return self.folder / files.PLOTS / f"{self.curve}.csv"


def listed() -> list[Training]:
    """Those under way first, then those of the workspace that are over, the newest first."""
    going = [Training(Path(each.folder), each.curve, each) for each in live.trainings()]
    here, known = Path.cwd(), {each.key for each in going}
    paths = sorted((*files.PLOTS.glob("*.csv"), *files.PLOTS.glob("*/curve.csv")), key=_changed, reverse=True)
    over = [Training(here, path.relative_to(files.PLOTS).with_suffix("").as_posix(), None) for path in paths]
    return going + [each for each in over if each.key not in known and not table(each).empty]


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def table(training: Training) -> pd.DataFrame:
    """Columns epoch, value, line, chart: what was evaluated so far, one row each; empty before the first evaluation."""
    columns = ["epoch", "value", "line", "chart"]
    try:
        history = pd.read_csv(training.path)
    except (OSError, ValueError):  # not there yet, or no table of numbers
        return pd.DataFrame(columns=columns)
    if "epoch" not in history:
        return pd.DataFrame(columns=columns)
    own = [name for name in history if name not in LEFT_OUT and term(name) not in LEFT_OUT]
    found = history.melt(["epoch"], own, var_name="line", value_name="value")
    found["value"] = pd.to_numeric(found["value"], errors="coerce")
    return found.assign(chart=found["line"].map(chart)).dropna(subset=["value"])[columns].reset_index(drop=True)


def term(column: str) -> str:
    """`train_mse` and `val_mse` are lines of the term `mse`."""
    return column.removeprefix("train_").removeprefix("val_")


def chart(column: str) -> str:
    own = term(column)
    return next((title for title, begins in CHARTS.items() if begins and own.startswith(begins)), LOSSES)


def sentence(training: Training) -> str:
    """How far it is, how fast, and how long it will take yet."""
    name = training.curve.removesuffix("/curve")
    now = training.progress
    if now is None:
        return f"**{name}**: this training is over. Its curve stands in `{files.PLOTS / training.curve}.csv`."
    if now.seconds_left < 0:
        return f"**{name}** begins: {now.done:.0%} of all steps are taken."
    return (
        f"**{name}**: {now.done:.0%} of all steps are taken, {now.images_per_second:,.0f} images per second, about "
        f"{duration(now.seconds_left)} left."
    )


def duration(seconds: float) -> str:
    """In the largest unit of which there is more than one."""
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
