#!/usr/bin/env bash
# Title:    A params key that holds a dot cannot be named in dvc.yaml
# Packages: dvc 3.67.1
# Expected: A key of a YAML params file such as `ruamel.yaml`, as a file of package versions has it, can be declared by a stage, by
#           some form of quotes or escapes at least: dvc itself writes it, flat, into dvc.lock.
# Instead:  dvc splits the name at its dots. `dvc repro` ends with "Parameters 'ruamel.yaml' are missing", whichever of four
#           ways of quoting is tried. A stage that declares the whole file works, and dvc.lock, `dvc status` and `dvc params
#           diff` then print the very name that dvc.yaml cannot say.
# Seen:     ruamel.yaml, "ruamel.yaml" in double quotes, ruamel\.yaml, [ruamel.yaml]: all missing; scikit-image: found; whole file:
#           locked as ruamel.yaml, and a change is reported as "modified: ruamel.yaml"
# Date:     2026-11-28
# Matters:  Whoever makes stages depend on single versions, layer names (`encoder.0.weight`) or file names as keys finds at run time
#           that no entry of dvc.yaml can name them: such a file needs keys without dots, or one level of nesting for each.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
command -v git >/dev/null || { apt-get update -qq && apt-get install -y -qq git; } >/dev/null
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check dvc==3.67.1
export PATH="$work/venv/bin:$PATH" DVC_NO_ANALYTICS=1

mkdir "$work/repository"
cd "$work/repository"
git init -q .
dvc init -q
printf 'ruamel.yaml: "0.18"\nscikit-image: "0.26"\n' >versions.yaml

declare_params() {
  printf 'stages:\n  made:\n    cmd: echo made\n    params:\n    - versions.yaml:%s\n' "$1" >dvc.yaml
}

for name in 'ruamel.yaml' "'\"ruamel.yaml\"'" "'ruamel\\.yaml'" "'[ruamel.yaml]'"; do
  declare_params " [$name]"
  said=$(dvc repro 2>&1 || true)
  echo "$said" | grep -q "are missing from 'versions.yaml'" || { echo "changed: $name was found: $said"; exit 1; }
  echo "$name: missing"
done

declare_params ' [scikit-image]'
dvc repro -q
echo "scikit-image: found"

declare_params ''
dvc repro -q
grep -q 'ruamel.yaml: ' dvc.lock || { echo "changed: the whole file is locked otherwise"; exit 1; }
sed -i 's/0\.18/0.19/' versions.yaml
said=$(dvc status)
echo "$said" | grep -Eq 'modified: +ruamel\.yaml' || { echo "changed: status says $said"; exit 1; }
echo "whole file: locked as ruamel.yaml, and its change is seen"
