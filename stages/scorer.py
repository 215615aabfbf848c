"""scorer: dataset -> artifacts/scorer/, plots/scorer.csv, the feature network that images are compared by

Nothing is ever trained against it.
"""

from __future__ import annotations

from tessera import feature_training
from tessera.core.run import Run
from tessera.runtime.stage import enter


def main(run: Run) -> None:
    feature_training.make("scorer", run)


if __name__ == "__main__":
    enter(main, trains=True)
