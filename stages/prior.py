"""prior: codes -> artifacts/prior/, plots/prior.csv"""

from tessera.core import files, models
from tessera.core.run import Run
from tessera.core.seeding import seed_globally
from tessera.core.training import fit
from tessera.runtime.stage import enter
from tessera.steps import prior as step


def main(run: Run) -> None:
    own = run.params.prior
    data = step.Data.of(run)
    recipe = models.prior_recipe(run.params, run.grids, run.codebook_sizes, data.classes)
    seed_globally(run.params.seed, "prior", "initialisation")
    objective = step.Objective(models.build(recipe))
    fitted = step.fitted(objective, data) or fit(step.task(objective, data), own.training, run.params.seed, run.runtime)
    if run.runtime.main:
        run.save_model("prior", objective.prior, recipe, step.metrics(fitted), notes=fitted.notes)
        files.write_history("prior", fitted.history)


if __name__ == "__main__":
    enter(main, trains=True)
