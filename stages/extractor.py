"""extractor: dataset -> artifacts/extractor/, plots/extractor.csv, two feature networks, differently seeded

The scorer scores, and nothing is ever trained against it; the perceptual one may serve as a loss.
"""

from tessera.core import files, models
from tessera.core.run import Run
from tessera.core.seeding import seed_globally
from tessera.runtime.stage import enter
from tessera.steps import extractor as step


def main(run: Run) -> None:
    own, seed = run.params.extractor, run.params.seed
    recipe = models.extractor_recipe(run.params, run.image_shape, len(run.label_names))
    splits = {split: step.Labelled(run.images(split), run.labels(split)) for split in ("train", "val")}
    for role in ("perceptual", "scorer"):
        seed_globally(seed, "extractor", role, "initialisation")
        network = models.build(recipe)
        fitted = step.train(network, role, splits, own, seed, run.runtime)
        if run.runtime.main:  # metrics and curve are those of the scorer, which comes last
            metrics = {"features": network.dim, **step.metrics(fitted, splits["val"])}
            run.save_model("extractor", network, recipe, metrics, role, fitted.notes)
            files.write_history("extractor", fitted.history or [{"epoch": 0}])


if __name__ == "__main__":
    enter(main, trains=True)
