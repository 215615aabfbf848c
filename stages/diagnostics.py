"""diagnostics: one instance per diagnostic -> metrics/diagnostics/<name>.json, plots/diagnostics/<name>/"""

from tessera.core.run import Run
from tessera.runtime.stage import enter


def main(run: Run) -> None:
    run.write("diagnostics", run.measure("diagnostics"))


if __name__ == "__main__":
    enter(main)
