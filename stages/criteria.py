"""criteria: metrics of prior and evaluation -> metrics/criteria.json"""

from tessera.core.run import Run
from tessera.runtime.stage import enter
from tessera.steps import verdict


def main(run: Run) -> None:
    verdict.write("criteria", run.params.criteria, run)


if __name__ == "__main__":
    enter(main)
