"""python -m tessera.studies               lists the studies
python -m tessera.studies NAME          queues the runs that have no result yet, waits for them, writes docs/studies/NAME.md
    -j N          runs at a time
    --again RUN   this run alone, also where it has a result
    --direct      without DVC experiments: each run in a process and folder of its own, under .scratch/studies/
    --page        only collect what there is, and write the page
"""

from __future__ import annotations

import argparse
import sys

from tessera.core.errors import InputError
from tessera.studies import direct, sweep


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tessera.studies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--again", metavar="RUN", action="append", default=[])
    parser.add_argument("--direct", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument(
        "--runtime", metavar="NAME=VALUE", action="append", default=[], help="with --direct: the machine"
    )
    parser.add_argument("--one", metavar="RUN", help=argparse.SUPPRESS)  # what --direct starts
    options = parser.parse_args()
    try:
        return work(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def work(options: argparse.Namespace) -> int:
    if not options.name:
        for name in sweep.names():
            print(f"{name:20}{sweep.load(name).title}")
        return 0
    study = sweep.load(options.name)
    if options.one:
        return direct.one(options.name, options.one, direct.options(options.runtime))
    pool, owner = sweep.pool_of(options.name, study)
    from tessera.studies import pages, queue, results  # seaborn and pandas: not for what is started many times

    if not options.page:
        wanted = options.again or list(results.missing(pool, sweep.shown(options.name, study), not options.direct))
        unknown = [run for run in wanted if run not in owner.runs]
        if unknown:
            raise InputError(f"--again: no run {', '.join(unknown)}; there are {', '.join(owner.runs)}")
        if options.direct:
            direct.start(pool, wanted, options.jobs, [f"--runtime={text}" for text in options.runtime])
        else:
            queue.start(pool, owner, wanted, options.jobs)
    results.save(pool, results.collect(pool, list(owner.runs), not options.direct))
    print(pages.write(options.name, study))
    return 0


if __name__ == "__main__":
    sys.exit(main())
