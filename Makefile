# Everything runs in .venv, made from requirements/ alone; no root and no other set-up needed.
PYTHON ?= python3
BIN := .venv/bin
DOCKERFILES := debian-13/Dockerfile debian-12/Dockerfile alpine-3.24/Dockerfile deploy/examples/image/Dockerfile
SCRIPTS := .ci/run requirements/lock image/base image/finish image/packages image/telegraf image/user image/venv \
	image/root/home/kontrol/boot.sh image/root/usr/bin/kontrol-health \
	deploy/etcd/certificates deploy/masters/on-change deploy/examples/image/hello \
	examples/nginx/balancer examples/numbers/restart \
	examples/redis/facts examples/redis/master examples/redis/pod examples/redis/run examples/redis/silent

.PHONY: demo test coverage simulate mutate check lint types imports docs format lock renew audit \
	dist release bench clean

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKED := --only-binary :all: --require-hashes --requirement

.venv/run: requirements/build.txt requirements/run.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv  # so that no package stays that is no longer listed
	$(INSTALL) $(LOCKED) requirements/build.txt --requirement requirements/run.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

.venv/test: .venv/run requirements/test.txt
	$(INSTALL) $(LOCKED) requirements/test.txt
	touch $@

.venv/dev: .venv/test requirements/dev.txt
	$(INSTALL) $(LOCKED) requirements/dev.txt
	touch $@

.venv/kube: tests/support/programs.py .venv/test  ## kubectl and helm, for the tests of deploy/
	$(BIN)/python -m tests.support.programs $(BIN)
	touch $@

demo: .venv/run  ## show the whole loop on loopback, with an embedded etcd
	$(BIN)/kontrol demo

TESTS ?=
test: .venv/test  ## run every test that needs no privileges, or TESTS; lists by name what it leaves out
	$(BIN)/python -m pytest -n auto --dist worksteal $(TESTS)

coverage: .venv/dev  ## what the tests, or TESTS, reach, by line and branch: a table, and htmlcov/
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n auto --dist worksteal $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet
	for package in kontrol/master automaton kontrol/rpc; do \
		echo "src/$$package: $$($(BIN)/coverage report --include="src/$$package/*" --format=total) %"; \
	done
	$(BIN)/coverage report

N ?= 1000
simulate: .venv/test  ## run N new random schedules against the invariants; SEED=... repeats a series
	$(BIN)/python -m tests.simulation $(SEED) --count $(N)

mutate: .venv/test  ## list the changes of the control loop that no test notices: half an hour
	$(BIN)/python -m tests.mutation

check: lint types imports docs

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/hadolint $(DOCKERFILES)
	$(BIN)/shellcheck $(SCRIPTS)
	$(BIN)/python -m tests.words.check
	$(BIN)/zizmor --quiet --offline .github

format: .venv/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: .venv/dev
	$(BIN)/mypy

imports: .venv/dev
	$(BIN)/lint-imports

docs: .venv/dev
	$(MAKE) -C docs html

lock: $(if $(wildcard $(BIN)/uv),,.venv/dev)  ## after a change of dependencies: pin new ones, by version and hash
	requirements/lock

renew: .venv/dev  ## pin the newest versions of everything; for a scheduled job
	requirements/lock --upgrade
	$(MAKE) .venv/dev

audit: .venv/dev  ## fail if a pinned version has a known vulnerability; says what it could not check
	$(BIN)/python requirements/audit.py

dist: .venv/dev  ## build sdist and wheel, and test both outside of this folder
release: .venv/dev  ## as dist, for the version of this commit's tag; stops if there is none
dist release:
	rm -rf dist
	$(BIN)/python -m hatchling build -t sdist -t wheel
	$(BIN)/python -m tests.support.distributions $(if $(filter release,$@),--tag) --tests $(TESTS)

bench: .venv/test
	$(BIN)/python -m bench

clean:
	rm -rf .venv docs/_build build dist htmlcov .coverage*
