"""Samples of the prior, beside images that need no prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.report import elements
from tessera.core import files

if TYPE_CHECKING:
    from tessera.core.run import Run


def body(run: Run) -> str:
    """Sheets of images, those of the prior first, samples of each group beside real images, with the fraction of each group, and a
    link to the closest training images."""
    chosen = run.params.chosen()
    own, told = chosen["samples"], run.params.conditions
    values = {key: own[key] for key in ("temperature", "top_k", "top_p")}
    values |= {f"guidance of the {name}": own["guidance"][name] for name in told}
    values |= {name: text for name, text in own["conditions"].items() if text}
    sampled = ", ".join(f"{key} {elements.text(value)}" for key, value in values.items())
    captions = {
        "samples": f"Samples of the prior {chosen['prior']['name']}, the first ones, unselected ({sampled}).",
        "baseline": f"Samples of the closed-form baseline {chosen['samples']['baseline']}.",
        "gaussian": "Decoded from N(0, I), without a prior.",
        "groups": "Each group in a row: its first samples, unselected, and test images of it that passed the tokenizer.",
    }
    found = [path for folder in ("samples", "features") for path in (files.PLOTS / folder).glob("*.png")]
    paths = sorted(found, key=lambda path: list(captions).index(path.stem) if path.stem in captions else 9)
    pictures = "".join(elements.picture(path, captions.get(path.stem, path.stem)) for path in paths)
    closest = "memorisation" in run.params.keys("evaluation")
    more = '<p>The <a href="#evaluation-memorisation">closest training images</a> show whether they are copies.</p>\n'
    return f'<div class="shown">{pictures}</div>\n{elements.numbers("features")}{more if closest else ""}'
