"""gate: metrics of reconstruction and diagnostics -> metrics/gate.json, artifacts/gate.txt, before any prior is trained

`prior` depends on the file alone, whose text never changes: other metrics that still pass train no prior again.
"""

from tessera.core import files
from tessera.core.run import Run
from tessera.runtime.stage import enter
from tessera.steps import verdict

OPEN = "The prior may be trained; metrics/gate.json says how its codes were judged.\n"


def main(run: Run) -> None:
    verdict.write("gate", run.params.gate, run)
    with files.writing(run.folder("gate.txt")) as stream:
        stream.write(OPEN)


if __name__ == "__main__":
    enter(main)
