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
    sampled = ", ".join(
        f"{key} {elements.text(chosen['samples'][key])}" for key in ("temperature", "top_k", "top_p", "guidance")
    )
    captions = {
        "samples": f"Samples of the prior {chosen['prior']['name']}, the first ones, unselected ({sampled}).",
        "baseline": f"Samples of the closed-form baseline {chosen['samples']['baseline']}.",
        "gaussian": "Decoded from N(0, I), without a prior.",
    }
    folder = files.PLOTS / "samples"
    paths = sorted(
        folder.glob("*.png"), key=lambda path: list(captions).index(path.stem) if path.stem in captions else 9
    )
    pictures = "".join(elements.picture(path, captions.get(path.stem, path.stem)) for path in paths)
    closest = "memorisation" in run.params.keys("evaluation")
    more = '<p>The <a href="#evaluation-memorisation">closest training images</a> show whether they are copies.</p>\n'
    groups = elements.plots("features") + elements.numbers("features")
    return f'<div class="shown">{pictures}</div>\n{groups}{more if closest else ""}'
