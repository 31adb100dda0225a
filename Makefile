# How the project is built, checked, shown and measured. `make help` lists the targets.
#
# The checkout's root holds a folder `daemon`, which is also the name of a dependency's package: so
# the root is never on sys.path (PYTHONSAFEPATH), and what runs is what is installed in .venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PYTHONSAFEPATH := 1

BIN := .venv/bin
PACKAGE_FOLDERS := daemon shim proto ctl
SOURCES := $(shell find $(PACKAGE_FOLDERS) -name '*.py' -o -name '*.json' -o -name '*.md')
LINKED = [[ -L $$(echo .venv/lib/python3*/site-packages/lighter/proto) ]]
PYTEST := $(BIN)/python -m pytest
TESTS := unit contract security integration grpc docker compat packaging systemd vm
# `make test` has three sessions. The first two are of tests that neither count what the machine has
# nor change what others count, and wait a good part of their time: they run beside each other.
EARLY := tests/unit
BESIDE := tests/contract $(wildcard tests/security/test_*.py)
LATE := tests/security/manager $(wildcard $(patsubst %,tests/%,$(filter-out unit contract security,$(TESTS))))
SESSION = $(PYTEST) -m "not soak" --durations=25 --junitxml=.cache/results$(1).xml
PREPARED_S := 900

.PHONY: help setup venv dev lint test test-vm vm-shell soak reliability mutants rpm wheels protos demo bench bench-images bench-quick bench-memory clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16

setup: ## install the system packages that tests, demo and bench use (Debian 12, CentOS Stream 9, 10)
	.ci/setup

venv: .venv/installed ## make .venv with the package installed from its wheel, renewed when sources change

.venv/dependencies: pyproject.toml
	[[ -x $(BIN)/python ]] || { python=$$(.ci/python); $$python -m venv .venv; }
	$(BIN)/python .ci/dependencies.py pyproject.toml dev | $(BIN)/pip install -q -r /dev/stdin
	touch $@

# A venv whose package is linked to the checkout needs nothing when a source changes.
.venv/installed: .venv/dependencies $(SOURCES)
	if ! $(LINKED); then \
	    rm -rf build; \
	    $(BIN)/pip install -q --no-deps --force-reinstall .; \
	    rm -rf build lighter.egg-info; \
	fi
	touch $@

# pip would follow the links when it removes the package, so its list of files forgets them.
dev: .venv/installed ## link .venv's package to the checkout: edits are live
	if ! $(LINKED); then \
	    cd .venv/lib/python3*/site-packages; \
	    sed -i '/^lighter\//d' lighter-*.dist-info/RECORD; \
	    rm -rf lighter && mkdir lighter; \
	    for folder in $(PACKAGE_FOLDERS); do ln -s "$(CURDIR)/$$folder" lighter/; done; \
	fi

lint: venv ## ruff and mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	cd .mypy && ../$(BIN)/mypy --namespace-packages --explicit-package-bases $(PACKAGE_FOLDERS:%=-p lighter.%)
	cd bench && ../$(BIN)/mypy --strict .
	cd packaging/rpm && ../../$(BIN)/mypy --strict .
	cd .ci && ../$(BIN)/mypy --strict rows.py mutants.py

# What late tests need is made beside lint and the early ones, which leave a processor idle. It mounts,
# so the late ones, which look for mounts, wait for it.
test: setup venv ## all set-up, lint, then every test but the long ones; needs root
	mkdir -p .cache; \
	timeout $(PREPARED_S) $(BIN)/python tests/prepare.py & preparing=$$!; beside=; \
	trap 'kill $$preparing $$beside 2>/dev/null || true; wait $$preparing $$beside || true' EXIT; \
	$(MAKE) lint; \
	failed=0; \
	$(call SESSION,-beside) $(BESIDE) >.cache/beside.log 2>&1 & beside=$$!; \
	$(call SESSION,-early) $(EARLY) || failed=1; \
	wait $$beside || failed=1; \
	beside=; cat .cache/beside.log; \
	wait $$preparing || true; preparing=; \
	$(call SESSION) $(LATE) || failed=1; \
	exit $$failed

test-vm: setup venv ## the tests in a virtual machine alone: cgroup v2, systemd, reboots, power cuts
	$(PYTEST) -m "not soak" --durations=0 tests/vm

vm-shell: setup venv ## a root shell in that machine
	$(BIN)/python tests/vm/shell.py

soak: venv ## the long versions of the tests
	$(PYTEST) -m soak --timeout 0 --junitxml=.cache/soak.xml $(wildcard $(TESTS:%=tests/%))

reliability: venv ## write docs/reliability.md: rows, their tests, results of the last `make test` and `make soak`
	$(BIN)/python .ci/rows.py $(addprefix --results=,$(wildcard .cache/results*.xml)) \
	    $(addprefix --long=,$(wildcard .cache/soak.xml))

mutants: venv ## switch guards off, one by one, and see whether their rows' tests turn red
	$(BIN)/python .ci/mutants.py

rpm: setup venv ## source and binary rpms in dist/, built without a network
	env -u PYTHONSAFEPATH $(BIN)/python packaging/rpm/build.py

wheels: venv ## write the bundled wheels down anew, after a change of pyproject.toml's pins
	env -u PYTHONSAFEPATH $(BIN)/python packaging/rpm/wheels.py lock

protos: venv ## generate daemon/grpc/pb from daemon/grpc/protos
	$(BIN)/python .ci/protos.py

demo: setup venv ## all set-up, then a tour with a real image, a killed manager and an adopted container
	@docs/demo.sh

bench: .cache/bench-venv/installed ## containerd and Lighter side by side; writes docs/performance.md
	env -u PYTHONDONTWRITEBYTECODE .cache/bench-venv/bin/python bench

bench-images: .cache/bench-venv/installed ## the rows of images alone; writes docs/performance.md
	env -u PYTHONDONTWRITEBYTECODE .cache/bench-venv/bin/python bench --part images

bench-quick: .cache/bench-venv/installed ## the same rows with few repetitions; prints only
	env -u PYTHONDONTWRITEBYTECODE .cache/bench-venv/bin/python bench --quick

bench-memory: ## the memory of shims alone, with another Python: make bench-memory PYTHON=python3.12
	$(or $(PYTHON),$$(.ci/python)) -m venv --clear .cache/bench-memory
	env -u PYTHONDONTWRITEBYTECODE .cache/bench-memory/bin/pip install -q --compile --force-reinstall .
	rm -rf build lighter.egg-info
	env -u PYTHONDONTWRITEBYTECODE .cache/bench-memory/bin/python bench --part memory

# What is measured is what a user installs: a wheel without links, with compiled modules.
.cache/bench-venv/installed: pyproject.toml $(SOURCES)
	[[ -x .cache/bench-venv/bin/python ]] || { python=$$(.ci/python); $$python -m venv .cache/bench-venv; }
	rm -rf build
	env -u PYTHONDONTWRITEBYTECODE .cache/bench-venv/bin/pip install -q --compile .
	env -u PYTHONDONTWRITEBYTECODE .cache/bench-venv/bin/pip install -q --compile --no-deps --force-reinstall .
	rm -rf build lighter.egg-info
	touch $@

clean: ## remove what can be made again, but .venv
	rm -rf build dist ./*.egg-info .cache .pytest_cache .ruff_cache .mypy_cache .mypy/.mypy_cache .hypothesis
	find $(PACKAGE_FOLDERS) tests bench -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf .venv
