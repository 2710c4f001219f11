# Everything a clone needs is behind these targets; `make` alone lists them.
# Every target brings .venv up to date first, which takes no time when nothing changed.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:

python := .venv/bin/python
sources := orchestrator worker shared tests $(if $(wildcard benchmarks/*.py),benchmarks)

FUZZ_SECONDS ?= 600

.PHONY: help setup run test chaos mutants fuzz lint check format clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-16s%s\n", $$1, $$2}'

setup: ## Make .venv: the project, its tests and checks, and vLLM for this machine
	@sh tests/environment/install.sh

run: setup ## Caption a copy of the sample images with real vLLM and a tiny model
	@mkdir -p scratch
	@test -e scratch/sample || { cp -R configs/sample/images scratch/sample.tmp && mv scratch/sample.tmp scratch/sample; }
	VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 $(python) -m caption_flow.cli run scratch/sample --config configs/sample.yaml

test: setup ## Run every test, those with real vLLM included
	$(python) -m pytest

chaos: setup ## Run the long storm: fifty kills and more against one run of 20,000 images
	CHAOS=long $(python) -m pytest -s tests/chaos

mutants: setup ## Break each promise on purpose, and see that tests notice
	$(python) -m tests.mutants

fuzz: setup ## Feed what strangers' bytes meet with mutated ones, ten minutes in all
	$(python) -c 'import atheris' 2>/dev/null || $(python) -m uv pip install --python $(python) 'atheris>=3'
	$(python) -m tests.fuzz --seconds $(FUZZ_SECONDS)

lint: setup ## Check format, lint, types, import rules, and that the generated docs are fresh
	$(python) -m ruff format --check $(sources)
	$(python) -m ruff check $(sources)
	$(python) -m mypy $(sources)
	$(python) -m pyright
	.venv/bin/lint-imports
	$(python) -m caption_flow.config.document | diff -u docs/configuration.md - || { echo "docs/configuration.md is stale: make format" >&2; exit 1; }

check: lint test ## Do all that CI does: lint, then test

format: setup ## Format the code, mend what ruff can mend, and write the generated docs
	$(python) -m caption_flow.config.document > docs/configuration.md.tmp
	mv docs/configuration.md.tmp docs/configuration.md
	$(python) -m ruff format $(sources)
	$(python) -m ruff check --fix $(sources)

clean: ## Remove what these targets made: .venv, scratch, caches
	rm -rf .venv scratch dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find orchestrator worker shared tests -name __pycache__ -type d -prune -exec rm -rf {} +
