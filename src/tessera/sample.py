"""Draw new images from a trained prior and show them as one picture:

    python -m tessera.sample -n 16 --seed 0 --out sheet.png

The same seed gives the same images on one machine. The images of a smaller -n
are the first of a larger one, unless the prior is `masked`, or labels or
clusters come in turn. They are drawn as the run drew its samples (temperature,
top-k, top-p, guidance). Of a prior that is told nothing they are, with its seed
and batch size, the first of the run's, where that kept all that it drew.
--codes keeps the codes, which `python -m tessera.decode` turns into one file
for each image.

A prior that was told something of its images (prior.conditions) can be asked:

    python -m tessera.sample --words guitar --vendor noto -n 8 --out guitar.png

--best-of 4 draws four images for each one, and a critic, a small network on
codes, keeps the one that is hardest to tell from training images. It is trained
on the spot, so this takes some seconds more, and needs the codes of a run.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from tessera.commands import encoded, line, trained
from tessera.conditions import conditions_of
from tessera.core import files
from tessera.core.conditioning import CLUSTER
from tessera.core.contracts import Device, Prior, Sampling, Tokenizer
from tessera.core.errors import InputError, listed
from tessera.core.seeding import derive, generator, numpy_generator

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Float, Int

ASKED = ("label", "vendor", "words", "cluster", "neighbour")  # conditions, each an option
SHOWN = 1024  # images on the picture, at most
MOST = 100  # candidates for one image
STREAM = "samples"  # as in the stage of that name, whose images have the same random numbers
CRITIC = "critic"  # stream of the samples that a critic learns from


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
    how = parser.add_argument_group(
        "how codes are drawn",
        "As the run drew its samples (section samples of its params.yaml), but for\nwhat is given here.",
    )
    how.add_argument(
        "--temperature", type=line.number(0, above=True), default=argparse.SUPPRESS, help="below 1: likelier codes"
    )
    how.add_argument(
        "--top-k",
        type=line.whole(0),
        default=argparse.SUPPRESS,
        metavar="K",
        help="among the K likeliest codes; 0: all",
    )
    how.add_argument(
        "--top-p", type=line.number(0, 1, above=True), default=argparse.SUPPRESS, metavar="P",
        help="among the fewest codes that have this probability together; 1: all",
    )  # fmt: skip
    how.add_argument(
        "--best-of", type=line.whole(1, MOST), default=1, metavar="K",
        help="draw K images for each one, of which a critic chooses; with the values of samples.rejection in params.yaml",
    )  # fmt: skip
    _add_conditions(parser)
    machine = parser.add_argument_group("models and machine")
    trained.add_options(machine)
    machine.add_argument("--batch-size", type=line.whole(1), default=250, metavar="B", help="images at a time")
    return parser


def _add_conditions(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_argument_group(
        "what the images shall show",
        "of a prior that was told it in training. Nothing is said of what is not\n"
        "asked for; where nothing is asked for at all, labels or clusters come in turn.",
    )
    asked.add_argument(
        "--label", metavar="NAME", default=argparse.SUPPRESS, help="a label of the data set, by name or number"
    )
    asked.add_argument(
        "--vendor", metavar="NAME", default=argparse.SUPPRESS, help="who it shall look to be by, by name or number"
    )
    asked.add_argument(
        "--words", metavar="WORDS", default=argparse.SUPPRESS, help="as in a name: woman firefighter: dark skin tone"
    )
    asked.add_argument(
        "--cluster", metavar="NUMBER", default=argparse.SUPPRESS, help="of the images whose latents are alike"
    )
    asked.add_argument(
        "--neighbour", metavar="NAME", default=argparse.SUPPRESS,
        help="a training image that it shall be near to, by name or number",
    )  # fmt: skip
    asked.add_argument(
        "--guidance", nargs="+", type=_strength, metavar="NAME=G", default=argparse.SUPPRESS,
        help="strength of a condition, such as words=2; 1: as it is, above 1: exaggerates it, 0: ignores it; the number alone "
        "where there is one condition",
    )  # fmt: skip


def _strength(text: str) -> tuple[str, float]:
    """`words=2`, or `2` under the name ''."""
    name, _, value = text.rpartition("=")
    return name, line.number(0)(value)


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
    conditions = conditions_of(prior, wishes(options, prior), options.n)
    sampling = sampling_of(options, models.sampling(), prior)
    sample = partial(sampled, prior, sampling, options, device)
    critic = critic_of(models, tokenizer, prior, sample, options) if options.best_of > 1 else None
    given = None if conditions is None else conditions.repeat(options.best_of, 1)
    codes = sample(options.best_of * options.n, given, STREAM)
    if critic is not None:
        from tessera.rejection import best

        codes = codes[best(critic(codes), options.n)]
    from tessera.images import arrays, pictures

    images = arrays.decoded(tokenizer, codes, options.batch_size, device)
    shown = images[:SHOWN]
    columns = min(getattr(options, "columns", math.ceil(math.sqrt(len(shown)))), len(shown))
    files.write_picture(options.out, pictures.sheet(shown, columns))
    some = f"the first {SHOWN} of " if len(shown) < options.n else ""
    chosen = f", the best by a critic of {options.best_of * options.n} that were drawn" if critic is not None else ""
    print(
        f"{options.out}: {some}{options.n} samples of {models.folder / 'prior'}, seed {options.seed}{chosen}; {in_words(sampling)}"
    )
    if hasattr(options, "codes"):
        digits = len(str(options.n - 1))
        names = [f"sample-{index:0{digits}}" for index in range(options.n)]
        encoded.write(options.codes, encoded.Encoded(codes, names, tokenizer.space, models.digest("tokenizer")))
        print(f"{options.codes}: their codes")


def sampled(
    prior: Prior,
    sampling: Sampling,
    options: argparse.Namespace,
    device: Device,
    n: int,
    conditions: Int[torch.Tensor, "n c"] | None,
    *stream: str,
) -> Int[np.ndarray, "n t"]:
    """Codes of `n` samples. The random numbers of each batch are those of the stage `samples` with this seed and batch size."""
    import numpy as np
    import torch

    from tessera.images import arrays

    codes = []
    with line.progress(n, " ".join(("sample", *stream[1:])), "image") as bar, torch.no_grad():
        for index, where in enumerate(arrays.batches(n, options.batch_size)):
            size, rng = where.stop - where.start, generator(options.seed, *stream, index)
            own = conditions[where].to(device) if conditions is not None else None
            codes.append(prior.sample(size, rng, sampling, own).cpu().numpy())
            bar.update(size)
    return np.concatenate(codes)


def critic_of(
    models: trained.Trained,
    tokenizer: Tokenizer,
    prior: Prior,
    sample: Callable[..., Int[np.ndarray, "n t"]],
    options: argparse.Namespace,
) -> Callable[[Int[np.ndarray, "n t"]], Float[np.ndarray, " n"]]:
    """The log odds of each candidate, by a critic that learns to tell codes of training images from samples, as many, which are
    drawn for conditions as they are in training.

    Raises:
        InputError: the codes of the training images are not there, or not of this tokenizer.
    """
    import torch

    from tessera.conditions import as_in_training
    from tessera.core.params import Params, read
    from tessera.core.run import Run
    from tessera.images import arrays
    from tessera.rejection import Settings, log_odds
    from tessera.runtime import provenance

    codes = Run.folder("codes")
    if models.folder.resolve() != files.ARTIFACTS.resolve() or not (codes / "train.npy").is_file():
        raise InputError(
            f"--best-of {options.best_of}: must be 1 without the codes of the training images, from which the critic learns; "
            f"{models.folder} has none. Run `dvc repro prior`, and leave --models out"
        )
    provenance.require_together("tokenizer", "codes", "prior")
    params = Params(read())
    own = params.section("samples", Settings).rejection
    run = Run(params)
    training = run.codes("train")
    real = training[arrays.evenly(len(training), own.count)]
    told = as_in_training(run, prior.conditioning, len(real), numpy_generator(options.seed, CRITIC, "labels"))
    false = sample(len(real), None if told is None else torch.from_numpy(told), STREAM, CRITIC)
    device = trained.device(options)
    return lambda found: log_odds(real, false, found, tokenizer, own, derive(options.seed, CRITIC), device)


def wishes(options: argparse.Namespace, prior: Prior) -> dict[str, list[str]]:
    """Condition -> what is asked for, of all images or of each."""
    asked = {name: [getattr(options, name)] for name in ASKED if hasattr(options, name)}
    kinds = [name for name in ("label", CLUSTER) if name in prior.conditioning]
    if asked or not kinds:
        return asked
    names = prior.conditioning[kinds[0]].names  # of fewer images than these some, evenly: clusters are numbered by size
    return {kinds[0]: [names[i * len(names) // min(options.n, len(names)) % len(names)] for i in range(options.n)]}


def sampling_of(options: argparse.Namespace, own: Sampling, prior: Prior) -> Sampling:
    """`own` is how the run drew its samples; what is given counts instead. The run may have drawn from another prior than this one,
    so of guidance only that counts which this one knows."""
    given = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p") if hasattr(options, name)}
    known = {name: pull for name, pull in own.guidance.items() if can_be_guided(prior, name)}
    return own._replace(**given, guidance={**known, **guidance_of(options, prior)})


def can_be_guided(prior: Prior, name: str) -> bool:
    """Whether the prior knows how to do without this condition, with which guidance compares."""
    return name in prior.conditioning and (prior.conditioning[name].dropout > 0 or hasattr(prior, "fit"))


def in_words(sampling: Sampling) -> str:
    """In words, but for what is as in a plain sample."""
    said = [f"temperature {sampling.temperature:g}"]
    said += [f"top-k {sampling.top_k}"] * (sampling.top_k > 0) + [f"top-p {sampling.top_p:g}"] * (sampling.top_p < 1)
    return ", ".join(said + [f"guidance {name}={pull:g}" for name, pull in sampling.guidance.items() if pull != 1])


def guidance_of(options: argparse.Namespace, prior: Prior) -> dict[str, float]:
    """
    Raises:
        InputError: a condition is named that the prior has not, or none is named where there is not exactly one; or the prior
            never learned to do without it.
    """
    told, found = prior.conditioning, {}
    for name, strength in getattr(options, "guidance", []):
        if not name and len(told.names) != 1:
            there = f"there are {listed(told.names)}" if told else "this prior is told nothing"
            raise InputError(f"--guidance {strength:g}: must name its condition, such as label={strength:g}; {there}")
        name = name or told.names[0]
        told.require_guidance([name])
        if strength != 1 and not can_be_guided(prior, name):
            raise InputError(
                f"--guidance {name}={strength:g}: must be 1, since this prior never went without the {name} in training; train one "
                f"with prior.conditions.{name} above 0"
            )
        found[name] = strength
    return found


if __name__ == "__main__":
    sys.exit(main())
