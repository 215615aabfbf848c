"""criteria: metrics of prior and evaluation -> metrics/criteria.json"""

from tessera import verdict
from tessera.core.run import Run
from tessera.runtime.stage import enter


def main(run: Run) -> None:
    verdict.write("criteria", run.params.section("criteria", verdict.Verdict), run)


if __name__ == "__main__":
    enter(main)
