#!/usr/bin/env bash
# Title:    In a shallow clone, experiments run in a temporary folder or by the queue succeed and vanish
# Packages: dvc 3.67.1, and git as Debian has it
# Expected: `dvc exp run --temp` and the queue record an experiment as `dvc exp run` does, or end with an error.
# Instead:  Plain `dvc exp run` works in a clone of depth 1. `--temp` trains, ends with status 0, and leaves no experiment; the
#           queue says Success and leaves none either. The commit cannot be fetched back from the temporary folder ("object
#           not found": history ends at the depth of the clone), and DVC passes that error over. In a full clone all three
#           are recorded.
# Seen:     full clone: plain 1, --temp 1, queue 1 (Success); clone of depth 1: plain 1, --temp 0 (status 0), queue 0 (Success)
# Date:     2026-11-28
# Matters:  CI services clone to depth 1 by default, and runs in temporary folders are how sweeps over tokenizers and priors go
#           in parallel. Hours of training end green, and no experiment names the model or its metrics.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
command -v git >/dev/null || { apt-get update -qq && apt-get install -y -qq git; } >/dev/null
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check dvc==3.67.1

export PATH="$work/venv/bin:$PATH" DVC_NO_ANALYTICS=1 DVC_SITE_CACHE_DIR="$work/site" DVC_GLOBAL_CONFIG_DIR="$work/config"
export GIT_CONFIG_GLOBAL="$work/gitconfig"
git config --global user.name finder
git config --global user.email finder@example.org
git config --global init.defaultBranch main

# a repository of two commits whose one stage stands for a training
mkdir "$work/origin"
cd "$work/origin"
git init -q
dvc init -q
printf 'rate: 1\n' > params.yaml
cat > dvc.yaml <<'YAML'
stages:
  train:
    cmd: cp params.yaml model.txt
    params: [rate]
    outs: [model.txt]
YAML
dvc repro -q
git add -A
git commit -qm "first"
echo "A second commit." > README
git add -A
git commit -qm "second"

experiments() { git for-each-ref --format='%(refname)' refs/exps | grep -vcE '^refs/exps/(exec|celery)/' || true; }

# runs FOLDER CLONE-OPTIONS...: how many experiments each way of running leaves in a fresh clone
runs() {
  local folder=$1 way status
  shift
  for way in plain temp queue; do
    git clone -q "$@" "file://$work/origin" "$work/$folder-$way"
    cd "$work/$folder-$way"
    status=0
    case $way in
      plain) dvc exp run -q -S rate=2 >/dev/null || status=$? ;;
      temp) dvc exp run -q --temp -S rate=2 >/dev/null || status=$? ;;
      queue)
        dvc exp run -q --queue -S rate=2 >/dev/null
        dvc queue start -q >/dev/null
        for _ in $(seq 100); do  # until the task has ended, and its worker with it
          sleep 1
          dvc queue status > status.txt
          status=$(awk 'NR == 2 { print $NF }' status.txt)
          if grep -qE 'Success|Failed' status.txt && grep -q '0 active, 0 idle' status.txt; then break; fi
        done
        ;;
    esac
    echo "$folder clone, $way: status $status, experiments $(experiments)"
  done
}

seen=$(runs full; runs shallow --depth 1)
echo "$seen"
expected="full clone, plain: status 0, experiments 1
full clone, temp: status 0, experiments 1
full clone, queue: status Success, experiments 1
shallow clone, plain: status 0, experiments 1
shallow clone, temp: status 0, experiments 0
shallow clone, queue: status Success, experiments 0"
if [ "$seen" != "$expected" ]; then
  printf 'the behaviour has changed: expected was\n%s\n' "$expected" >&2
  exit 1
fi
