"""Draw new images from a trained prior and show them as one picture:

    python -m tessera.sample -n 16 --seed 0 --out sheet.png

The same seed gives the same images on one machine. The images of a smaller -n
are the first of a larger one, unless the prior is `masked`; with the values and
the seed of params.yaml they are the first of the stage `samples`. --codes keeps
the codes, which `python -m tessera.decode` turns into one file for each image.
"""

from __future__ import annotations

import argparse
import difflib
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tessera.commands import encoded, line, trained
from tessera.core import files
from tessera.core.contracts import Device, Prior, Sampling, Tokenizer
from tessera.core.errors import InputError, listed
from tessera.core.seeding import generator

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Int, UInt8

PLAIN = Sampling()
SHOWN = 1024  # images on the picture, at most
STREAM = "samples"  # as in the stage of that name, whose images have the same random numbers


def arguments() -> line.Parser:
    parser = line.Parser("sample", __doc__)
    parser.add_argument("-n", type=line.whole(1), default=16, metavar="N", help="images")
    parser.add_argument("--seed", type=line.whole(0), default=0, metavar="S", help="decides the images")
    parser.add_argument(
        "--out", type=line.ending(".png"), required=True, metavar="PNG", default=argparse.SUPPRESS, help="the picture"
    )
    parser.add_argument(
        "--codes",
        type=line.ending(".npz"),
        metavar="NPZ",
        default=argparse.SUPPRESS,
        help="also write their codes here",
    )
    parser.add_argument(
        "--columns",
        type=line.whole(1),
        default=argparse.SUPPRESS,
        help="images in a row of the picture (default: a square)",
    )
    how = parser.add_argument_group("how codes are drawn")
    how.add_argument(
        "--temperature", type=line.number(0, above=True), default=PLAIN.temperature, help="below 1: likelier codes"
    )
    how.add_argument(
        "--top-k", type=line.whole(0), default=PLAIN.top_k, metavar="K", help="among the K likeliest codes; 0: all"
    )
    how.add_argument(
        "--top-p", type=line.number(0, 1, above=True), default=PLAIN.top_p, metavar="P",
        help="among the fewest codes that have this probability together; 1: all",
    )  # fmt: skip
    _add_conditions(parser)
    machine = parser.add_argument_group("models and machine")
    trained.add_options(machine)
    machine.add_argument("--batch-size", type=line.whole(1), default=250, metavar="B", help="images at a time")
    return parser


def _add_conditions(parser: argparse.ArgumentParser) -> None:
    conditions = parser.add_argument_group("what the images shall show, of a prior that was trained with it")
    conditions.add_argument(
        "--label", metavar="NAME", default=argparse.SUPPRESS,
        help="a label of the data set, by name or number (default: all labels in turn)",
    )  # fmt: skip
    conditions.add_argument(
        "--guidance", type=line.number(0), default=PLAIN.guidance, help="above 1: exaggerates it; 0: ignores it"
    )


def main(given: Sequence[str] | None = None) -> int:
    return line.enter(arguments(), work, given)


def work(options: argparse.Namespace) -> None:
    models = trained.find(options, "tokenizer", "prior")
    device = trained.device(options)
    tokenizer, prior = models.tokenizer(device), models.prior(device)
    if tokenizer.space != prior.space:
        raise InputError(
            f"{models.folder}: the prior draws codes of {prior.space.grids} x {prior.space.sizes}, the tokenizer decodes "
            f"{tokenizer.space.grids} x {tokenizer.space.sizes}: they do not belong together. Run `dvc repro prior`, or name "
            "another folder by --models"
        )
    labels = labels_of(options, prior, models.label_names())
    codes, images = sample(tokenizer, prior, options, labels, device)
    from tessera.images import pictures

    shown = images[:SHOWN]
    columns = min(getattr(options, "columns", math.ceil(math.sqrt(len(shown)))), len(shown))
    files.write_picture(options.out, pictures.sheet(shown, columns))
    some = f"the first {SHOWN} of " if len(shown) < options.n else ""
    print(f"{options.out}: {some}{options.n} samples of {models.folder / 'prior'}, seed {options.seed}")
    if hasattr(options, "codes"):
        digits = len(str(options.n - 1))
        names = [f"sample-{index:0{digits}}" for index in range(options.n)]
        encoded.write(options.codes, encoded.Encoded(codes, names, tokenizer.space, models.digest("tokenizer")))
        print(f"{options.codes}: their codes")


def sample(
    tokenizer: Tokenizer, prior: Prior, options: argparse.Namespace, labels: torch.Tensor | None, device: Device
) -> tuple[Int[np.ndarray, "n t"], UInt8[np.ndarray, "n h w c"]]:
    """Codes and images. The random numbers of each batch are those of the stage `samples` with this seed and batch size."""
    import numpy as np
    import torch

    from tessera.images import arrays

    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.guidance)
    codes, images = [], []
    with line.progress(options.n, "sample", "image") as bar, torch.no_grad():
        for index, where in enumerate(arrays.batches(options.n, options.batch_size)):
            n, rng = where.stop - where.start, generator(options.seed, STREAM, index)
            own = labels[where].to(device) if labels is not None else None
            found = prior.sample(n, rng, sampling, own)
            codes.append(found.cpu().numpy())
            images.append(arrays.to_pixels(tokenizer.decode(found)))
            bar.update(n)
    return np.concatenate(codes), np.concatenate(images)


def labels_of(options: argparse.Namespace, prior: Prior, names: Sequence[str]) -> torch.Tensor | None:
    """The label of each image [n]; None for a prior without labels.

    Raises:
        InputError: a label or guidance is given to a prior that has no labels, or there is no such label.
    """
    import torch

    given: str | None = getattr(options, "label", None)
    if not prior.classes:
        if given is not None or options.guidance != PLAIN.guidance:
            flag = "--label" if given is not None else "--guidance"
            raise InputError(
                f"{flag}: this prior was trained without labels. Leave it out, or train one with prior.conditional"
            )
        return None
    if given is None:
        return torch.arange(options.n) % prior.classes
    return torch.full((options.n,), _index(given, prior.classes, names))


def _index(given: str, classes: int, names: Sequence[str]) -> int:
    """The number of a label that is given by name or number."""
    if given in names:
        return list(names).index(given)
    if given.isdecimal() and int(given) < classes:
        return int(given)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    there = listed(names) if names else f"numbers from 0 to {classes - 1}"
    raise InputError(f"--label {given!r}: there is no such label; there are {there}{hint}")


if __name__ == "__main__":
    sys.exit(main())
