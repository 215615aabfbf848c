"""extensions: one instance per extension -> metrics/extensions/<name>.json, plots/extensions/<name>/"""

from tessera.core.run import Run
from tessera.runtime.stage import enter


def main(run: Run) -> None:
    report = run.measure("extensions")
    if run.runtime.main:
        run.write("extensions", report)


if __name__ == "__main__":
    enter(main, trains=True)  # some extensions train a network, which resumes like those of other stages
