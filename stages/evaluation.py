"""evaluation: one instance per measure -> metrics/evaluation/<name>.json, plots/evaluation/<name>/"""

from tessera.core.run import Run
from tessera.runtime.stage import enter


def main(run: Run) -> None:
    run.write("evaluation", run.measure("evaluation"))


if __name__ == "__main__":
    enter(main)
