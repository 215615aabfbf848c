"""extensions: one instance per extension -> metrics/extensions/<name>.json, plots/extensions/<name>/"""

from tessera.core.run import Run
from tessera.runtime.stage import enter


def main(run: Run) -> None:
    run.write("extensions", run.measure("extensions"))


if __name__ == "__main__":
    enter(main)
