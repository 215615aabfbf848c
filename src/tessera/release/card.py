"""Model cards as hubs show them: a YAML header, what the model is, data and licence, figures with the place that they were read
from, how to load it, what it cannot do, its params.

https://huggingface.co/docs/hub/model-cards describes the header.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tessera
from tessera.core import files, models, trees
from tessera.core.contracts import SPLITS, ImageShape
from tessera.core.errors import InputError
from tessera.core.models import Recipe
from tessera.core.space import CodeSpace

if TYPE_CHECKING:
    from tessera.release.onnx_files import Agreement

PARAMS = "## Params\n\n"  # heading of the last part of the card that a stage writes
DISTANCES = ("fid", "fd_")  # how names of Fréchet distances begin
TASKS = {"tokenizers": "image-feature-extraction", "priors": "unconditional-image-generation"}  # of the hub


class Figure(NamedTuple):
    """A number of a card: its name on hubs, what it is, where it stands in `metrics/`. `unit` `%` shows a fraction in percent."""

    kind: str
    text: str
    file: str
    key: str
    decimals: int
    unit: str = ""

    def shown(self, value: float) -> str:
        factor = 100 if self.unit == "%" else 1
        return f"{factor * value:.{self.decimals}f}{self.unit and ' '}{self.unit}"


FIGURES = {
    "tokenizers": (
        Figure("psnr", "PSNR of the reconstructions, of the mean error", "reconstruction", "test.psnr_db", 2, "dB"),
        Figure("ssim", "SSIM of the reconstructions, uniform windows", "reconstruction", "test.ssim", 3),
        Figure("ssim_gaussian", "SSIM, Gaussian windows", "reconstruction", "test.ssim_gaussian", 3),
        Figure("bits", "bits per image, all codes equally likely", "codes", "bits_per_image", 0),
        Figure("usage", "codes that are used, validation split", "tokenizer", "val.usage", 1, "%"),
        Figure("perplexity", "perplexity of the codes, validation split", "tokenizer", "val.perplexity", 1),
    ),
    "priors": (
        Figure("nll", "bits per code", "evaluation/likelihood", "all.test.nll_bits_per_code", 3),
        Figure("nll_bound", "bits per code, upper bound", "evaluation/likelihood", "all.test.nll_bound_bits_per_code", 3),
        Figure("rung", "rung of the samples: how damaged real images must be to be as far from real ones; 1: halves exchanged",
               "evaluation/ladder", "test.all.rung", 2),
        Figure("told_apart", "accuracy of a classifier of samples against real images; 50 %: it cannot tell them",
               "evaluation/two_sample", "test.all.features", 1, "%"),
        Figure("coverage", "real images that samples cover, clipped coverage", "evaluation/coverage",
               "all.samples.clipped_coverage", 3),
        Figure("near_copies", "samples nearer to the training set, in codes, than 99 % of test images", "evaluation/memorisation",
               "all.codes.near_fraction", 1, "%"),
    ),
}  # fmt: skip


class Data(NamedTuple):
    """What a model was trained on. `licence` is an identifier of hubs such as `ofl-1.1`, or empty where nothing states it.
    `rows` has the number of images of each split."""

    name: str
    licence: str
    rows: Mapping[str, int]
    families: int


class Subject(NamedTuple):
    """The model that a card is of, and what is known of it.

    Attributes:
        name: of the exported folder; the model lies in `models/<name>/<kind>`.
        recipe: of the model.
        image_shape, space: of the tokenizer; codes of the prior are in the same space.
        parameters: number of its parameters, running statistics included.
        digest: SHA-256 of the weights.
    """

    name: str
    kind: str
    recipe: Recipe
    image_shape: ImageShape
    space: CodeSpace
    parameters: int
    digest: str


def figures(seam: str) -> list[tuple[Figure, float]]:
    """The figures of a model that `metrics/` has, in order; a measure that is not run is left out."""
    stored: dict[str, Any] = {}
    found = []
    for figure in (*FIGURES[seam], *(_distance() if seam == "priors" else ())):
        path = files.METRICS / f"{figure.file}.json"
        if figure.file not in stored:
            stored[figure.file] = files.read_json(path) if path.exists() else {}
        value = trees.value(stored[figure.file], figure.key, None)
        if isinstance(value, int | float):
            found.append((figure, value))
    return found


def _distance() -> list[Figure]:
    """The Fréchet distance of the samples, whose name tells on which features."""
    path = files.METRICS / "evaluation" / "frechet.json"
    measured = files.read_json(path).get("all", {}) if path.exists() else {}
    text = "Fréchet distance of samples to test images"
    return [
        Figure(name, text, "evaluation/frechet", f"all.{name}.samples_test", 0)
        for name in measured
        if name.startswith(DISTANCES)
    ]


def read_params(card: Path) -> str:
    """The params that a model was trained with: the last part of the card that its stage wrote.

    Raises:
        InputError: the card has no such part.
    """
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    _, heading, params = text.partition(PARAMS)
    if not heading:
        raise InputError(
            f"{card} has no section Params, so nobody could tell how the model was trained. Train it again"
        )
    return params.strip()


def header(fields: dict[str, Any]) -> str:
    import yaml

    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=120)}---\n\n"


def read_header(text: str) -> dict[str, Any]:
    """The YAML header of a card; empty if it has none that can be read."""
    import yaml

    start, _, rest = text.partition("---\n")
    if start.strip() or "\n---" not in rest:
        return {}
    try:
        found = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def of_model(
    subject: Subject,
    data: Data,
    licence: str,
    params: str,
    known: Sequence[tuple[Figure, float]],
    conditions: Sequence[str] = (),
) -> str:
    """The card of one model."""
    recipe = subject.recipe
    title = f"{subject.name}/{subject.kind}"
    quantizer = f" with {recipe.quantizer[0]}" if recipe.quantizer else ""
    parts = [
        header(_fields(subject, data, licence, known)) + f"# {title}: {recipe.name}{quantizer}",
        _what(subject, conditions),
        f"{_use(subject)}",
        f"## Data and licence\n\n{_data(data, licence)}",
        f"## Figures\n\nOf the test split, where nothing else is said: images that the model was not trained on.\n\n{table(known)}",
        "## Limits\n\n"
        + "".join(f"- {limit}\n" for limit in _limits(subject, data, dict(_named(known)), conditions)).strip(),
        f"{PARAMS.strip()}\n\n{params}",
        "## Files\n\n"
        f"`{models.WEIGHTS}`: {subject.parameters:,} parameters, running statistics included; SHA-256\n`{subject.digest}`.\n"
        f"`{models.RECIPE}`: the plug-ins and their values. `code.json`: digests of the source files that the model was trained "
        f"with.\nMade with tessera {tessera.__version__}. All files are safetensors, JSON and text; nothing in them is executed.",
    ]
    return "\n\n".join(parts) + "\n"


def table(known: Sequence[tuple[Figure, float]]) -> str:
    if not known:
        return "None was measured."
    rows = [f"| {figure.text} | {figure.shown(value)} | `{figure.file}: {figure.key}` |" for figure, value in known]
    return "\n".join(["| measure | value | where |", "|---|---|---|", *rows])


def _fields(subject: Subject, data: Data, licence: str, known: Sequence[tuple[Figure, float]]) -> dict[str, Any]:
    """The header. `model-index` is where hubs read figures from."""
    recipe = subject.recipe
    tags = [subject.kind, recipe.name, *([recipe.quantizer[0]] if recipe.quantizer else [])]
    fields: dict[str, Any] = {
        "library_name": "tessera",
        "license": licence,
        "pipeline_tag": TASKS[recipe.seam],
        "tags": [*tags, "discrete-representations", "safetensors"],
    }
    measured = [
        {"type": figure.kind, "name": f"{figure.text} ({figure.file}: {figure.key})", "value": value}
        for figure, value in known
    ]
    if measured:
        of = {"type": data.name, "name": data.name, "split": "test"}
        task = {"type": TASKS[recipe.seam]}
        results = [{"task": task, "dataset": of, "metrics": measured}]
        fields["model-index"] = [{"name": f"{subject.name}/{subject.kind}", "results": results}]
    return fields


def _what(subject: Subject, conditions: Sequence[str]) -> str:
    channels, height, width = subject.image_shape
    colour = "grey" if channels == 1 else "RGB"
    grids = ", ".join(
        f"{grid[0]}x{grid[1]} of {size} values"
        for grid, size in zip(subject.space.grids, subject.space.sizes, strict=True)
    )
    codes = f"{subject.space.length} codes ({grids}; {subject.space.bits:.0f} bits)"
    if subject.kind == "tokenizer":
        return (
            f"Turns {colour} images of {height}x{width} pixels into {codes}, integers that name code vectors, and back."
        )
    told = f", given {' and '.join(conditions)} of an image (`recipe.json` has what there is)" if conditions else ""
    return f"Draws {codes}{told}, which the tokenizer beside it decodes to {colour} images of {height}x{width} pixels."


def _use(subject: Subject) -> str:
    folder = f"models/{subject.name}"
    if subject.kind == "tokenizer":
        command = f"python -m tessera.encode FOLDER codes.npz --models {folder}"
        code = (
            f'import torch\n\nimport tessera\n\ntokenizer = tessera.load("{folder}/tokenizer")\n'
            "x = torch.zeros(1, *tokenizer.image_shape)  # [B, C, H, W] in [-1, 1]\nwith torch.no_grad():\n"
            "    codes = tokenizer.encode(x)  # [B, T] integers\n    images = tokenizer.decode(codes).clamp(-1, 1)"
        )
    else:
        command = f"python -m tessera.sample -n 16 --seed 0 --out sheet.png --models {folder}"
        code = (
            "import torch\n\nimport tessera\nfrom tessera.conditions import conditions_of\n\n"
            f'tokenizer = tessera.load("{folder}/tokenizer")\nprior = tessera.load("{folder}/prior")\n'
            "told = conditions_of(prior, {}, 16)  # of each image: here nothing\nwith torch.no_grad():\n"
            "    codes = prior.sample(16, torch.Generator().manual_seed(0), conditions=told)  # [16, T] integers\n"
            "    images = tokenizer.decode(codes).clamp(-1, 1)  # [16, C, H, W] in [-1, 1]"
        )
    return f"## Use\n\n```shell\n{command}\n```\n\n```python\n{code}\n```"


def _data(data: Data, licence: str) -> str:
    counts = " ".join(f"{data.rows[split]:,} images in {split}," for split in SPLITS if split in data.rows)
    families = f" The splits do not divide its {data.families:,} families." if data.families else ""
    own = (
        f"The data are under `{data.licence}`" if data.licence else "The licence of the data is not stated beside them"
    )
    return (
        f"Trained on `{data.name}`: {counts or 'images,'} of which it learned from train alone.{families}\n\n"
        f"{own}; the weights are under `{licence}`. A reconstructed image stays the work of whoever drew it."
    )


def _named(known: Sequence[tuple[Figure, float]]) -> list[tuple[str, str]]:
    return [(figure.kind, figure.shown(value)) for figure, value in known]


def _limits(subject: Subject, data: Data, shown: Mapping[str, str], conditions: Sequence[str]) -> list[str]:
    """What the model cannot do, as far as its kind, its data and its figures tell."""
    _, height, width = subject.image_shape
    limits = [
        f"It has seen images of `{data.name}` alone, at {height}x{width} pixels. The figures hold for such images; nothing is "
        "known of others."
    ]
    if subject.kind == "tokenizer":
        limits.append(f"An image has {subject.space.bits:.0f} bits: detail that they cannot hold is lost.")
        return limits
    limits.append("Its codes mean something to the tokenizer beside it, and to no other.")
    limits.append(f"It can be asked for {' and '.join(conditions)} of its training set, for nothing else." if conditions else
                  "It takes no wish: neither a label nor words decide what it draws.")  # fmt: skip
    if "told_apart" in shown:
        limits.append(
            f"A classifier tells samples from real images in {shown['told_apart']} of the cases (50 %: it cannot)."
        )
    if "near_copies" in shown:
        limits.append(f"{shown['near_copies']} of the samples are nearly copies of training images, by their codes.")
    return limits


def of_folder(name: str, data: Data, licence: str, kinds: Sequence[str], agreement: Agreement | None) -> str:
    """The card of the whole folder, which hubs show first."""
    rows = [f"| [`{kind}/`]({kind}/README.md) | {text} |" for kind, text in CONTENTS.items() if kind in kinds]
    if agreement is not None:
        rows.append(
            "| `onnx/` | the tokenizer as `encoder.onnx` and `decoder.onnx`, for browsers and programs without torch |"
        )
    fields = {
        "library_name": "tessera",
        "license": licence,
        "pipeline_tag": TASKS["priors"],
        "tags": ["discrete-representations", "image-tokenizer", "safetensors", *(["onnx"] if agreement else [])],
    }
    parts = [
        header(fields) + f"# {name}: trained models of tessera",
        "\n".join(["| folder | holds |", "|---|---|", *rows]),
        "```shell\n"
        f"pip install tessera-{tessera.__version__}-py3-none-any.whl   # `make wheel` in a clone makes it, in dist/\n"
        f"python -m tessera.sample -n 16 --seed 0 --out sheet.png --models {Path('models', name).as_posix()}\n"
        "sha256sum -c SHA256SUMS                            # in this folder\n```",
        f"## Data and licence\n\n{_data(data, licence)}",
        *([onnx_part(agreement)] if agreement is not None else []),
    ]
    return "\n\n".join(parts) + "\n"


CONTENTS = {"tokenizer": "images to codes and back", "prior": "new codes"}


def onnx_part(agreement: Agreement) -> str:
    """What the ONNX files take and give, and how they differed from torch on the test images."""
    return (
        "## ONNX\n\n"
        "`encoder.onnx` takes `images`, float32 [n, C, H, W] in [-1, 1], and gives `codes`, int64 [n, T]; `decoder.onnx` takes "
        "`codes` and gives `images`, which may leave [-1, 1] a little: clip them.\n\n"
        f"Run by onnxruntime on the {agreement.images:,} test images: {agreement.other_codes:,} of {agreement.codes:,} codes "
        f"differ from torch's. Decoded from the same codes, {agreement.other_values:,} of {agreement.values:,} 8-bit values "
        f"differ, and no value by more than {agreement.largest:.1g} (of [-1, 1])."
    )
