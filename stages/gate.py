"""gate: metrics of reconstruction, diagnostics and probe -> metrics/gate.json, artifacts/gate.txt, before any prior is trained

`prior` depends only on the text file, whose content never changes: if metrics change and still pass, no prior is trained again.
"""

from tessera import verdict
from tessera.core import files
from tessera.core.run import Run
from tessera.runtime.stage import enter

OPEN = "The prior may be trained; metrics/gate.json says how its codes were judged.\n"


def main(run: Run) -> None:
    verdict.write("gate", run.params.section("gate", verdict.Verdict), run)
    with files.writing(run.folder("gate.txt")) as stream:
        stream.write(OPEN)


if __name__ == "__main__":
    enter(main)
