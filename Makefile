# All targets need GNU make, python3 (3.11 or newer, with venv and pip) and a package index; nothing else.
#
#   AIRFLOW=3.1         the release line to work on: 2.11, 3.0, 3.1, 3.2 or 3.3
#   PYTHON=python3.12   the interpreter of environments still to be made
#   ARGS="-k upload"    more arguments for pytest
#   WORKERS=4           processes that share the tests; auto: one a core
#   FILE=talk.mp4       the media of `make demo`
#   KEEP=1              leave the demo running
#   MINUTES=60          how long `make soak` lasts; SEED=1 repeats its chances
#   REPOSITORY=https…   where a release lives: its metadata and README lead there

AIRFLOW  ?= 3.3
PYTHON   ?= python3
ARGS     ?=
WORKERS  ?= auto
MINUTES  ?= 60
AIRFLOWS := 2.11 3.0 3.1 3.2 3.3

# The environment of each line; .venv is that of the newest.
venv  = $(if $(filter 3.3,$(1)),.venv,.venv-$(1))
VENV := $(call venv,$(AIRFLOW))

# uv trusts the authorities of the machine and goes to the index of pip, unless its own settings say otherwise.
UV ?= .venv-uv/bin/uv
export UV_SYSTEM_CERTS ?= true
export UV_PYTHON_DOWNLOADS ?= never
ifndef UV_INDEX_URL
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
endif
ifdef PIP_EXTRA_INDEX_URL
export UV_INDEX ?= $(PIP_EXTRA_INDEX_URL)
endif

.PHONY: help test test-fast test-all lint format docs demo bench soak dist constraints clean $(AIRFLOWS:%=test-%) $(AIRFLOWS:%=test-fast-%)
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

test: lint test-$(AIRFLOW) ## Lint, then run the suite (AIRFLOW=3.1 for another line; ARGS for pytest)

test-fast: test-fast-$(AIRFLOW) ## Run the suite without live Airflows, in a few minutes

test-all: lint $(AIRFLOWS:%=test-%) ## Run the suite on every supported line of Airflow

lint: .venv/.installed ## Check style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: .venv/.installed ## Put the code in shape
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

docs: .venv/.installed ## Build the documentation site into docs/_build/html; a warning is an error
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && AIRFLOW_HOME="$$home" \
		.venv/bin/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

demo: .venv/.installed ## Run the main job on a real Airflow and the emulator (FILE=talk.mp4, KEEP=1)
	.venv/bin/python -m demo $(if $(FILE),"$(FILE)") $(if $(KEEP),--keep)

bench: .venv/.installed ## Measure transfer, waiting and batches
	.venv/bin/python -m benchmarks

soak: .venv/.installed ## Live through a night of faults and kills on a real Airflow (MINUTES=60, SEED=1)
	.venv/bin/python -m soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

dist: .venv/.installed ## Build a release of the repository that it names, and check it (REPOSITORY=https://…)
	test -n "$(REPOSITORY)"
	rm -rf dist
	.venv/bin/python -m hatchling build -d dist
	again=$$(mktemp -d) && trap 'rm -rf "$$again"' EXIT && umask 077 && \
		.venv/bin/python -m hatchling build -d "$$again" && diff -r dist "$$again"
	.venv/bin/python -m twine check --strict dist/*

constraints: | $(UV) ## Renew tests/constraints/
	tests/constraints/renew $(UV)

clean: ## Remove environments and caches
	rm -rf .venv .venv-* dist .pytest_cache .mypy_cache .ruff_cache .hypothesis docs/_build

# Airflow keeps its configuration and its database in AIRFLOW_HOME: a new one for each run. With ARGS a part of the
# suite may have no test left (pytest's 5).
run_tests = home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && \
	AIRFLOW_HOME="$$home" $(call venv,$(1))/bin/python -m pytest $(2) $(ARGS) $(if $(ARGS),|| test $$? -eq 5)

# An older line runs what may differ there. Live tests wait more than they compute: three processes (tests/conftest.py).
live_3.3 = -n 3 --dist loadgroup
live_3.0 = -n 0

# __init__.py has the version, which what is installed tells as well.
define line_rules
test-$(1): test-fast-$(1)
$(if $(live_$(1)),	@$$(call run_tests,$(1),-m live $(live_$(1))))

test-fast-$(1): $(call venv,$(1))/.installed
	@$$(call run_tests,$(1),-m 'not live$(if $(filter 3.3,$(1)),, and not once)' -n $(WORKERS) --dist worksteal)

$(call venv,$(1))/.installed: tests/constraints/airflow-$(1).txt pyproject.toml airflow_provider_roughy/__init__.py | $(UV)
	test -x $(call venv,$(1))/bin/python || $(UV) venv --quiet --python $(PYTHON) $(call venv,$(1))
	$(UV) pip install --quiet --compile-bytecode --python $(call venv,$(1))/bin/python --constraint $$< \
		--editable '.[emulator]' --group test --group lint $(if $(filter 3.3,$(1)),$(addprefix --group=,s3 exports postgres celery bench docs))
	touch $$@
endef
$(foreach line,$(AIRFLOWS),$(eval $(call line_rules,$(line))))

.venv-uv/bin/uv:
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
