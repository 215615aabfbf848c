"""reconstruction: dataset, tokenizer -> artifacts/reconstruction/, metrics and pictures of what the codes keep"""

from tessera.core import files
from tessera.core.run import SPLITS, Run
from tessera.runtime.stage import enter
from tessera.steps import reconstruction as step


def main(run: Run) -> None:
    tokenizer, tables = run.tokenizer(), {}
    for split in SPLITS:
        tables[split] = step.decoded(
            tokenizer,
            run.images(split),
            run.folder("reconstruction") / f"{split}.npy",
            run.params.reconstruction.batch_size,
            run.runtime.device,
        ).assign(name=run.table(split)["name"], family=run.table(split)["family"])
    splits = step.summary(tables)
    files.write_metrics("reconstruction", step.metrics(splits))
    files.write_table(files.PLOTS / "reconstruction" / "splits.csv", splits)
    files.write_table(files.PLOTS / "reconstruction" / "images.csv", tables["test"])
    picture = step.picture(run.images("test"), run.images("test", "reconstruction"), tables["test"])
    files.write_picture(files.PLOTS / "reconstruction" / "test.png", picture)


if __name__ == "__main__":
    enter(main)
