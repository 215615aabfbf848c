"""report: params, all metrics, curves and pictures -> report.html, one page that needs no network and no other file"""

from pathlib import Path

from stages.report.page import render
from tessera.core import files
from tessera.core.run import Run
from tessera.runtime.stage import enter

REPORT = Path("report.html")


def main(run: Run) -> None:
    with files.writing(REPORT) as stream:
        stream.write(render(run))


if __name__ == "__main__":
    enter(main)
