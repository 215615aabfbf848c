# `make repro`: set-up and the whole pipeline.   `make test`: set-up and the tests.   Both work on a bare machine.
# `make repro PRESET=quick`: the pipeline with the values of presets/quick.yaml, as an experiment.
# `make vendors`: other vendors' drawings of the emoji, with npm, and what draws SVG; for PRESET=emoji-vendors.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
VENV := .venv
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

# The playground has an environment of its own: Gradio asks for an older Pillow than the pipeline decodes with.
PLAYGROUND := .venv-playground

.PHONY: repro test playground test-playground setup check lint lock vendors wheel clean

repro: check
ifdef PRESET
	arguments=$$(python -m tessera.presets $(PRESET)) && python -m tessera.runtime.command exp run $$arguments
else
	python -m tessera.runtime.command repro
endif

check: setup
	@python -m tessera.runtime.validation
	@python -m tessera.runtime.lockfile

test: lint
	python -m pytest

playground: $(PLAYGROUND)/installed
	$(PLAYGROUND)/bin/python -m tessera.playground --open

# In Chromium, which the system must have: as root of Debian, it is installed.
test-playground: $(PLAYGROUND)/installed-test
	command -v chromium >/dev/null || ! [ "$$(id -u)" = 0 ] || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium)
	$(PLAYGROUND)/bin/python -m pytest -n 0 -rs tests/test_playground.py tests/test_playground_page.py

lint: $(VENV)/installed-test
	ruff check .
	ruff format --check .
	lint-imports
	mypy

setup: $(VENV)/installed

vendors: setup
	@python -m pip install --disable-pip-version-check -q --no-build-isolation -e '.[svg]'
	@python data/fetch_vendors.py

# Installs once; again only when a lock or the package's metadata changed.
$(VENV)/installed: requirements.lock pyproject.toml set-up
	@sh set-up "$(PYTHON)" "$(VENV)" requirements.lock
	@touch $@

$(VENV)/installed-test: requirements-test.lock $(VENV)/installed
	@sh set-up "$(PYTHON)" "$(VENV)" requirements-test.lock
	@touch $@

$(PLAYGROUND)/installed: requirements-playground.lock pyproject.toml set-up
	@sh set-up "$(PYTHON)" "$(PLAYGROUND)" requirements-playground.lock
	@touch $@

$(PLAYGROUND)/installed-test: requirements-playground-test.lock $(PLAYGROUND)/installed
	@sh set-up "$(PYTHON)" "$(PLAYGROUND)" requirements-playground-test.lock
	@touch $@

# Exact versions for every platform, from pyproject.toml. Needs uv; only maintainers run it.
lock:
	uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header -q pyproject.toml -o requirements.lock
	uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header -q pyproject.toml --extra test \
	  -c requirements.lock -o requirements-test.lock
	python -m tessera.runtime.versions
	grep -vE '^(pillow|tomlkit)==' requirements.lock > .scratch/constraints.txt # which Gradio wants older
	uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header -q pyproject.toml --extra playground \
	  -c .scratch/constraints.txt -o requirements-playground.lock
	uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header -q pyproject.toml --extra playground \
	  --extra playground-test -c requirements-playground.lock -o requirements-playground-test.lock

# The library as one file in dist/, for people without a clone. What an earlier build left would come along.
wheel: setup
	rm -rf build
	python -m pip wheel --disable-pip-version-check -q --no-deps --no-build-isolation -w dist .

clean:
	rm -rf .scratch dvc_plots .mypy_cache .pytest_cache .ruff_cache
