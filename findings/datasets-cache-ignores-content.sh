#!/usr/bin/env bash
# Title:    The cache of `load_dataset` gives the old rows of a file that was replaced by a larger one
# Packages: datasets 5.2.0, pandas 3.1.1
# Expected: A local file whose content and size changed is read anew: caches of a content are keyed by it, as the hashes in
#           the names of its folders suggest.
# Instead:  The key is the file's path and its time of modification; neither content nor size is part of it. An archive with
#           fixed times, as reproducible builds make it, puts the new file under the old time when it is unpacked, and
#           training goes on with the old rows, without a message.
# Seen:     first version: 40 rows on disk, 40 loaded; second version: 100 rows on disk, 40 loaded, all of the first version;
#           the same bytes under a later time: 100 loaded
# Date:     2026-11-28
# Matters:  A data set that is unpacked anew for each run, on the scratch disk of a cluster or in a container whose cache stays,
#           can be replaced by its next version and change no number of any run.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check datasets==5.2.0 pandas==3.1.1

export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
cd "$work"
cat > archive.py <<'PYTHON'
"""archive.py NAME FIRST LAST: a tar archive of rows.parquet, as a reproducible build makes it: every time is 0."""
import sys
import tarfile

import pandas as pd

name, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pd.DataFrame({"row": range(first, last)}).to_parquet("rows.parquet")
with tarfile.open(name, "w") as archive:
    info = archive.gettarinfo("rows.parquet")
    info.mtime = 0
    with open("rows.parquet", "rb") as stream:
        archive.addfile(info, stream)
PYTHON
cat > load.py <<'PYTHON'
"""Prints how many rows the file in data/ has, how many are loaded, and the first of them."""
import datasets
import pyarrow.parquet as pq

rows = datasets.load_dataset("parquet", data_files="data/rows.parquet", split="train")
print(pq.read_metadata("data/rows.parquet").num_rows, len(rows), rows[0]["row"])
PYTHON

python="$work/venv/bin/python"
"$python" archive.py first.tar 0 40
"$python" archive.py second.tar 1000 1100
mkdir data
tar -xf first.tar -C data
first=$("$python" load.py)
tar -xf second.tar -C data
second=$("$python" load.py)
touch data/rows.parquet
touched=$("$python" load.py)
printf 'version of the file: rows on disk, rows loaded, first row loaded\nfirst: %s\nsecond: %s\nsecond, under a later time: %s\n' \
  "$first" "$second" "$touched"

if [ "$first/$second/$touched" != "40 40 0/100 40 0/100 100 1000" ]; then
  echo "the behaviour has changed: the second version was expected to give the 40 rows of the first until its time changes" >&2
  exit 1
fi
