"""tokenizer: dataset, extractor -> artifacts/tokenizer/, plots/tokenizer.csv, plots/tokenizer/"""

from tessera.core import files, models
from tessera.core.run import Run
from tessera.core.seeding import seed_globally
from tessera.core.training import fit
from tessera.runtime.stage import enter
from tessera.steps import tokenizer as step


def main(run: Run) -> None:
    own, pixels = run.params.tokenizer, {split: run.images(split) for split in ("train", "val")}
    recipe = models.tokenizer_recipe(run.params, run.image_shape)
    seed_globally(run.params.seed, "tokenizer", "initialisation")
    objective = step.Objective(models.build(recipe), step.loss_terms(run))
    data = step.Data(pixels, own.augmentation, own.training.batch_size, run.runtime.device)
    fitted = fit(step.task(objective, data, own), own.training, run.params.seed, run.runtime)
    if run.runtime.main:
        run.save_model("tokenizer", objective.tokenizer, recipe, step.metrics(fitted))
        files.write_history("tokenizer", fitted.history)
        step.write_snapshots(fitted, data)


if __name__ == "__main__":
    enter(main, trains=True)
