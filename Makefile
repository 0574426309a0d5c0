# All targets need GNU make, python3 (3.11 or newer, with venv and pip) and a package index; nothing else.
#
#   AIRFLOW=3.1         the minor version of Airflow to work on: 2.11, 3.0, 3.1, 3.2, 3.3 or 3.4
#   PYTHON=python3.12   another interpreter than that version's default, with its own environment: .venv-3.1-python3.12
#   ARGS="-k upload"    more arguments for pytest
#   WORKERS=4           processes that share the tests; by default two per core, because tests wait more than they compute
#   FILE=talk.mp4       the media of `make demo`
#   KEEP=1              leave the demo running
#   MINUTES=60          duration of `make soak`; SEED=1 repeats its random faults and kills
#   REPOSITORY=https…   address of the repository of a release, to which its metadata and README link

AIRFLOW  ?= $(MAIN)
PYTHON   ?=
ARGS     ?=
WORKERS  ?= $(shell python3 -c 'import os; print(2 * os.cpu_count())')
MINUTES  ?= 60
AIRFLOWS := 2.11 3.0 3.1 3.2 3.3 3.4

# The minor version of Airflow to develop on: its environment also has the packages for live tests, lint and docs. 3.4
# is a beta in the constraints; it becomes this version with its release.
MAIN := 3.3

# The Pythons that a minor version of Airflow supports. Its environment uses the first one that this machine has
# (.ci/python). The first ones differ, so that a machine with all Pythons tests all of them (3.14: .ci/run).
pythons_2.11 := 3.12 3.11
pythons_3.0  := 3.11 3.12
pythons_3.1  := 3.13 3.12 3.11
pythons_3.2  := 3.12 3.13 3.11 3.14
pythons_3.3  := 3.11 3.12 3.13 3.14
pythons_3.4  := 3.13 3.12 3.14 3.11

# Further dependency groups of an environment. Those of the storages are large, so one Python has them.
groups = $(if $(filter $(MAIN),$(1)),s3 exports postgres celery bench docs) $(if $(filter 3.4,$(1)),openlineage $(if $(PYTHON),,s3 storages))

# The environment of each minor version.
venv = .venv$(if $(filter $(MAIN),$(1)),,-$(1))$(if $(PYTHON),-$(notdir $(PYTHON)))
VENV := $(call venv,$(MAIN))

# uv trusts the certificate authorities of the machine and uses pip's index, unless its own settings differ.
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

.PHONY: help pages test test-fast test-httpx2 test-all lint format docs demo bench soak dist constraints clean $(foreach each,test test-fast test-live python pythons,$(AIRFLOWS:%=$(each)-%))
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

test: lint test-$(AIRFLOW) ## Lint, then run the suite (AIRFLOW=3.1 for another version; ARGS for pytest)

test-fast: test-fast-$(AIRFLOW) ## Run the suite without live Airflows, in a few minutes

test-httpx2: $(call venv,3.4)/.installed ## Run the tests of the transport with httpx2 in httpx's place
	@$(call run_tests,3.4,-p tests.httpx2 $(addprefix tests/test_,client.py download.py tus.py polling.py polling_in_time.py) -n $(WORKERS))

test-all: lint $(AIRFLOWS:%=test-%) ## Run the suite on every supported minor version of Airflow

lint: $(VENV)/.installed ## Check style and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(VENV)/.installed ## Format the code and fix what ruff can fix
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

docs: $(VENV)/.installed ## Build the documentation site into docs/_build/html; a warning is an error
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && AIRFLOW_HOME="$$home" \
		$(VENV)/bin/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

pages: $(VENV)/.installed ## Write the tables, figures and examples of the pages, generated from the code
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && AIRFLOW_HOME="$$home" PYTHONPATH=docs $(VENV)/bin/python -m from_code

demo: $(VENV)/.installed ## Run the example DAGs on a real Airflow and the emulator (FILE=talk.mp4, KEEP=1)
	$(VENV)/bin/python -m demo $(if $(FILE),"$(FILE)") $(if $(KEEP),--keep)

bench: $(VENV)/.installed ## Measure transfer, waiting and batches
	$(VENV)/bin/python -m benchmarks

soak: $(VENV)/.installed ## Run batches on a real Airflow under faults and kills, and check that nothing is lost (MINUTES=60, SEED=1)
	$(VENV)/bin/python -m soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

dist: $(VENV)/.installed ## Build a release into dist/ and check it (REPOSITORY=https://…)
	test -n "$(REPOSITORY)"
	rm -rf dist
	$(VENV)/bin/python -m hatchling build -d dist
	again=$$(mktemp -d) && trap 'rm -rf "$$again"' EXIT && umask 077 && \
		$(VENV)/bin/python -m hatchling build -d "$$again" && diff -r dist "$$again"
	$(VENV)/bin/python -m twine check --strict dist/*

constraints: | $(UV) ## Update tests/constraints/ from Airflow's own constraints
	tests/constraints/renew $(UV)

clean: ## Remove environments and caches
	rm -rf .venv .venv-* dist .pytest_cache .mypy_cache .ruff_cache .hypothesis docs/_build

# Airflow keeps its configuration and its database in AIRFLOW_HOME: a new one for each run. With ARGS, no test may be
# selected (pytest's exit status 5).
run_tests = home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && \
	AIRFLOW_HOME="$$home" $(call venv,$(1))/bin/python -m pytest $(2) $(ARGS) $(if $(ARGS),|| test $$? -eq 5)

# The lines that run the whole suite; the others run the tests whose result may differ. tests/live/__init__.py selects the
# live tests of each minor version.
WHOLE := $(MAIN) 3.4
# Live tests wait more than they compute: three processes (tests/conftest.py).
live_3.4 = -n 0
live_3.3 = -n 3 --dist loadgroup --no-loadscope-reorder
live_3.0 = -n 0

# Print the interpreter of a minor version.
python = .ci/python $(1) $(or $(PYTHON:python3.%=3.%),$(pythons_$(1)))

# __init__.py has the version, which the installed metadata has as well.
define line_rules
test-$(1): test-fast-$(1) $(if $(live_$(1)),test-live-$(1))

test-live-$(1): $(call venv,$(1))/.installed
	@$$(call run_tests,$(1),-m live $(or $(live_$(1)),-n 0))

test-fast-$(1): $(call venv,$(1))/.installed
	@$$(call run_tests,$(1),-m 'not live$(if $(filter $(WHOLE),$(1)),, and not once)' -n $(WORKERS) --dist worksteal)

pythons-$(1):
	@echo $(pythons_$(1))

python-$(1):
	@$$(call python,$(1))

$(call venv,$(1))/.installed: tests/constraints/airflow-$(1).txt pyproject.toml airflow_provider_roughy/__init__.py | $(UV)
	@test -x $(call venv,$(1))/bin/python || { python=$$$$($$(call python,$(1))) && \
		$(UV) venv --quiet --python "$$$$python" $(call venv,$(1)); }
	$(UV) pip install --quiet --python $(call venv,$(1))/bin/python --constraint $$< \
		--editable '.[emulator]' --group test --group lint $(addprefix --group=,$(call groups,$(1)))
	touch $$@
endef
$(foreach line,$(AIRFLOWS),$(eval $(call line_rules,$(line))))

.venv-uv/bin/uv:
	python3 -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
