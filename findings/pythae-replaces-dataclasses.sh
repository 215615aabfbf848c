#!/usr/bin/env bash
# Title:    pythae brings another `dataclasses`, by which torch cannot be imported
# Packages: pythae 0.1.2, dataclasses 0.6, torch 2.15.0
# Expected: A package that is installed beside others adds modules. No module of the standard library is replaced.
# Instead:  pythae requires `dataclasses>=0.6`, the backport for Python 3.6, whatever the version of Python. In a virtual
#           environment nobody sees it, since site-packages comes after the standard library. In a folder on PYTHONPATH
#           (`pip install --target`) it comes before it, and the backport looks for a name of Python 3.6's `typing`.
# Seen:     installed by pip: dataclasses 0.6;
#           folder on PYTHONPATH: import torch raises AttributeError: module 'typing' has no attribute '_ClassVar';
#           the same folder after the standard library: import torch and import pythae succeed
# Date:     2026-11-28
# Matters:  The error names neither pythae nor the backport, and not only pythae fails: so does all that uses dataclasses in any
#           process with this folder on its path. `pip uninstall dataclasses`, or deleting dataclasses.py, mends it.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
echo "installing torch, which is large ..."
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check --target "$work/packages" torch==2.15.0 pythae==0.1.2

cd "$work"
cat >look.py <<'PYTHON'
import os
import subprocess
import sys
from importlib.metadata import distributions

FOLDER = "packages"
BEFORE = {"PYTHONPATH": FOLDER}
AFTER = f"import sys; sys.path.append({FOLDER!r}); "


def said(code, **variables):
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True)
    return (done.stderr.strip().splitlines() or ["no error"])[-1] if done.returncode else "succeeds"


installed = {package.name: package.version for package in distributions(path=[FOLDER])}
seen = {
    "before the standard library, import torch": said("import torch", **BEFORE),
    "after the standard library, import torch": said(AFTER + "import torch"),
    "after the standard library, import pythae": said(AFTER + "import pythae.models"),
}
print(f"installed by pip: pythae {installed['pythae']}, dataclasses {installed.get('dataclasses')}")
for name, what in seen.items():
    print(f"{name}: {what}")
expected = ["AttributeError: module 'typing' has no attribute '_ClassVar'", "succeeds", "succeeds"]
found = [what.partition(". Did you mean")[0] for what in seen.values()]
if installed.get("dataclasses") != "0.6" or found != expected:
    sys.exit(f"the behaviour has changed: expected was dataclasses 0.6, and {expected}")
PYTHON
CUDA_VISIBLE_DEVICES="" "$work/venv/bin/python" look.py
