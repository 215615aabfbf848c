#!/usr/bin/env bash
# Title:    One task that kills its worker takes all tasks with it that wait for the same resource
# Packages: distributed 2026.8.0
# Expected: A task is given up as KilledWorker after `allowed-failures` (3) workers and one died while they ran it. The others go on.
# Instead:  Tasks that ask for a resource (`resources={"GPU": 1}`) are handed to a worker at once, however many, and the death of
#           a worker counts against each of them, begun or not. So after four deaths by one task all are KilledWorker.
#           Tasks without a resource wait at the scheduler, and are spared.
# Seen:     one GPU each: 10 of 10 harmless tasks given up, 0 of them had begun; no resource: 0 of 10
# Date:     2026-11-28
# Matters:  A resource is Dask's own way to give each training one GPU. One training that runs out of memory, and with it its Slurm
#           job, then ends a night's sweep: trainings are reported as deadly that have never begun. Asked for in distributed#5234.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check distributed==2026.8.0

cat > "$work/blame.py" <<'PYTHON'
import os
import sys
import tempfile
import time

import dask
from distributed import Client, LocalCluster, wait


def deadly():
    time.sleep(1)  # until all tasks have been handed in
    os._exit(9)  # as a process that the system kills for want of memory


def harmless(folder, name):
    open(os.path.join(folder, str(name)), "w").close()


def lost(**resource):
    """How many of ten harmless tasks behind a deadly one were given up, and how many of those had begun."""
    where = {"local_directory": sys.argv[1], "dashboard_address": "127.0.0.1:0", "silence_logs": 60}
    with (
        tempfile.TemporaryDirectory(dir=sys.argv[1]) as began,
        LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", resources={"GPU": 1}, **where) as cluster,
        Client(cluster) as client,
    ):
        first = client.submit(deadly, priority=1, **resource)
        others = [client.submit(harmless, began, name, **resource) for name in range(10)]
        wait([first, *others], timeout=200)
        assert first.status == "error"
        gone = [name for name, future in enumerate(others) if future.status == "error"]
        assert all(type(others[name].exception()).__name__ == "KilledWorker" for name in gone)
        return len(gone), len(set(map(str, gone)) & set(os.listdir(began)))


if __name__ == "__main__":
    dask.config.set({"distributed.deploy.lost-worker-timeout": "300s"})  # on a slow machine: LocalCluster waits for a new worker
    for said, resource in ("one GPU each", {"resources": {"GPU": 1}}), ("no resource", {}):
        print("{}: {} of 10 harmless tasks given up, {} of them had begun".format(said, *lost(**resource)))
PYTHON

seen=$("$work/venv/bin/python" "$work/blame.py" "$work" 2> "$work/log") || { cat "$work/log" >&2; exit 1; }
echo "$seen"
expected="one GPU each: 10 of 10 harmless tasks given up, 0 of them had begun
no resource: 0 of 10 harmless tasks given up, 0 of them had begun"
if [ "$seen" != "$expected" ]; then
  printf 'the behaviour has changed: expected was\n%s\n' "$expected" >&2
  exit 1
fi
