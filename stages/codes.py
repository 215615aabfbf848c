"""codes: dataset, tokenizer -> artifacts/codes/, of every split, and of augmented copies of the training images; their rate"""

from tessera.core import files
from tessera.core.run import Run
from tessera.runtime.stage import enter
from tessera.steps import codes as step


def main(run: Run) -> None:
    tokenizer, folder = run.tokenizer(), run.folder("codes")
    step.encode(tokenizer, run, folder)
    if run.runtime.main:
        facts = {"grids": tokenizer.grids, "codebook_sizes": tokenizer.codebook_sizes}
        files.write_json(folder / "facts.json", facts)
        files.write_metrics("codes", step.metrics(run))


if __name__ == "__main__":
    enter(main, shares=True)
