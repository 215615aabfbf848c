"""tokenizer: dataset, extractor -> artifacts/tokenizer/, plots/tokenizer.csv, plots/tokenizer/"""

from tessera.core import files, models
from tessera.core.run import Run
from tessera.runtime.stage import enter
from tessera.steps import tokenizer as step


def main(run: Run) -> None:
    recipe = models.tokenizer_recipe(run.params, run.image_shape)
    data = step.Data.of(run)
    objective = step.objective(recipe, run)
    fitted = step.train(objective, data, run)
    tokenizer = step.with_codebook(objective.tokenizer, recipe, data, run)
    if run.runtime.main:
        run.save_model("tokenizer", tokenizer, recipe, step.metrics(fitted, tokenizer, data), notes=fitted.notes)
        files.write_history("tokenizer", fitted.history)
        step.write_snapshots(fitted, data)


if __name__ == "__main__":
    enter(main, trains=True, after_training=lambda params: ("quantizer",) if params.post_hoc else ())
