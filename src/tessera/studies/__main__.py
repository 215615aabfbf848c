"""python -m tessera.studies               lists the studies, and which have not been run yet
python -m tessera.studies NAME          queues the runs that have no result yet, waits for them, writes docs/studies/NAME.md
    -j N          runs at a time
    --again RUN   only this run, even if it has a result
    --direct      without DVC experiments: each run in a process and folder of its own, under .scratch/studies/
    --on ADDRESS  on the workers of the Dask cluster whose scheduler has this address, one run at a time on each
    --page        only collect the results there are, and write the page
    --missing     only print which runs have no result for their present values, and why; without NAME: of all studies
    --declare     accept kept results for the present values, if params.yaml only got or lost names since, and you know that
                  these change nothing; refused for a run in which a value has changed
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tessera.core.errors import InputError
from tessera.studies import direct, sweep


def options_of(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tessera.studies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?")
    parser.add_argument("-j", "--jobs", type=int, help="runs at a time; 1 if not given")
    parser.add_argument("--again", metavar="RUN", action="append", default=[])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--direct", action="store_true")
    where.add_argument("--on", metavar="ADDRESS", default="", help="tcp://HOST:8786; a run at a time on each worker")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--declare", action="store_true")
    parser.add_argument(
        "--runtime", metavar="NAME=VALUE", action="append", default=[], help="with --direct and --on: the machine"
    )
    parser.add_argument(
        "--one", metavar="RUN", help=argparse.SUPPRESS
    )  # started by --direct, and by the workers of --on
    parser.add_argument("--tied", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--data", metavar="PATH=DIGEST", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.on and options.jobs is not None:
        parser.error("-j is no option of --on: each worker does one run at a time, so start as many workers")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = options_of(argv)
    try:
        return work(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def work(options: argparse.Namespace) -> int:
    if not options.name and not options.missing:
        for name in sweep.names():
            study = sweep.load(name)
            pool, _ = sweep.pool_of(name, study)
            print(f"{name:20}{study.title}{'' if (sweep.PAGES / f'{pool}.csv').exists() else ' (not run yet)'}")
        return 0
    if options.one:
        if options.tied:
            direct.end_with_input()
        data = {path: digest for path, _, digest in (text.rpartition("=") for text in options.data)}
        return direct.one(options.name, options.one, direct.options(options.runtime), data)
    without_dvc = bool(options.direct or options.on)
    if options.missing:
        return say_missing([options.name] if options.name else sweep.names(), without_dvc)
    study = sweep.load(options.name)
    pool, owner = sweep.pool_of(options.name, study)
    from tessera.studies import pages, results  # these load seaborn, which --one need not wait for

    ended: dict[str, str] = {}
    if options.declare:
        print("\n".join(results.declare(pool, sweep.counted(owner))))
    else:
        commits = None if without_dvc else ["HEAD"]
        if not options.page:
            ended, commits = run(options, pool, owner, sweep.shown(options.name, study), commits)
        found = results.collect(pool, owner, commits, ended)
        if all(result.state == "missing" for result in found):
            raise InputError(
                f"{pool}: no run has a result yet, so there is nothing to show; `python -m tessera.studies {pool}` makes them"
            )
        results.save(pool, found)
    print(pages.write(options.name, study))
    return int(any(state != "done" for state in ended.values()))


def run(
    options: argparse.Namespace, pool: str, owner: sweep.Study, shown: list[str], commits: list[str] | None
) -> tuple[dict[str, str], list[str] | None]:
    """Execute the runs that `options` ask for. Returns the state of each run, and the commits that hold the experiments."""
    from tessera.studies import cluster, queue, results

    there = [result for result in results.collect(pool, owner, commits) if result.run in shown]
    wanted = options.again or [result.run for result in results.missing(there, sweep.counted(owner))]
    if unknown := [name for name in wanted if name not in owner.runs]:
        raise InputError(f"--again: no run {', '.join(unknown)}; there are {', '.join(owner.runs)}")
    overrides = [f"--runtime={text}" for text in options.runtime]
    if options.on:
        direct.options(options.runtime)  # a mistake in them is found here
        return cluster.start(pool, owner, wanted, options.on, overrides), None
    jobs = options.jobs or 1
    if not options.direct:
        return queue.start(pool, owner, wanted, jobs)
    direct.start(pool, wanted, jobs, overrides)
    return {name: direct.state(pool, name) for name in wanted}, None


def say_missing(names: list[str], without_dvc: bool) -> int:
    """Print one line per run without result, with the reason. A pool is printed once, even if several studies show it."""
    from tessera.studies import results

    for name, study in dict(sweep.pool_of(name, sweep.load(name)) for name in names).items():
        found = results.collect(name, study, None if without_dvc else ["HEAD"])
        for result in results.missing(found, sweep.counted(study)):
            print(f"{name}/{result.run}: {result.why or results.NOT_YET.get(result.state, result.state)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
