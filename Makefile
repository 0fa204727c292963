# Every target makes what it needs. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.complete
export PATH := $(BIN):$(PATH)
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help venv data repro sweep placement check test bench lint types clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "%-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## create .venv from requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or run make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements.lock
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	"$(BIN)/python" -m compileall -q -j 0 "$(VENV)/lib" >/dev/null 2>&1 || true
	@touch "$(STAMP)"

data: $(STAMP) ## get the DVC-tracked data and checkpoints from the repository's own remote
	$(if $(wildcard *.dvc),"$(BIN)/python" -m dvc pull --quiet $(wildcard *.dvc))

repro: data ## run the whole pipeline, print the headline table
	"$(BIN)/python" -m dvc repro
	@"$(BIN)/sgpipe" report headline

SWEEP_SEEDS ?= 0,1,2
SWEEP_JOBS ?= 2
DRAWN := -S 'evaluate.conditions.neutral=[positive,negative,shuffled]' -S 'evaluate.conditions.relational=[positive]' -S +compute.threads=1
ARMS := -S '+arms.projector_only={kind: graph_tokens}' -S '+arms.random_blocks={kind: graph_lora, blocks: random}' \
  -S '+evaluate.adapters.projector_only=graphs' -S '+evaluate.adapters.random_blocks=graphs'
# `make sweep LAYOUT=1`: also the arms that are told boxes, ground truth and proposed
ifdef LAYOUT
ARMS += -S '+arms.controlnet={kind: controlnet, learning_rate: 2e-3}' -S '+evaluate.adapters.controlnet=graphs' \
  -S '+arms.controlnet_proposed={kind: controlnet, learning_rate: 2e-3, boxes: proposed}' -S '+evaluate.adapters.controlnet_proposed=graphs' \
  -S '+arms.t2i={kind: t2i_adapter, learning_rate: 3e-3}' -S '+evaluate.adapters.t2i=graphs' \
  -S '+arms.t2i_proposed={kind: t2i_adapter, learning_rate: 3e-3, boxes: proposed}' -S '+evaluate.adapters.t2i_proposed=graphs'
endif
ALONE := -S '~arms.text_only' -S '~evaluate.adapters.text_only'

sweep: data ## every arm and the predecessor's recipe with three training seeds as DVC experiments, and their table (70 minutes on two cores)
	"$(BIN)/python" -m dvc exp run --temp -n base $(DRAWN) sample_base
	"$(BIN)/python" -m dvc exp run --queue -n arms $(DRAWN) $(ARMS) -S 'train.seed=$(SWEEP_SEEDS)' evaluate
	"$(BIN)/python" -m dvc exp run --queue -n predecessor $(DRAWN) $(ALONE) \
	  $$("$(BIN)/sgpipe" preset predecessor-miniature --settings) -S 'train.seed=$(SWEEP_SEEDS)' evaluate
	@echo "queued; 'dvc queue status' and 'dvc queue logs <name>' show how far they are"
	@while left=$$("$(BIN)/python" -m dvc queue status | grep -E ' (Queued|Running)'); do \
	  free=$$(($(SWEEP_JOBS) - $$(echo "$$left" | grep -c ' Running'))); \
	  if [ $$free -gt 0 ] && echo "$$left" | grep -q ' Queued'; then "$(BIN)/python" -m dvc queue start --jobs $$free >/dev/null; fi; \
	  sleep 30; done # a worker may end before the queue does, and DVC does not count a busy one
	"$(BIN)/sgpipe" report sweep 'arms*' --beside 'predecessor=predecessor*' --seeds '$(SWEEP_SEEDS)'

placement: data ## LoRA and token entry by block at a small budget, from three training seeds; a second call goes on where one was stopped
	"$(BIN)/python" -m dvc repro negatives cache_prompts cache_negative_prompts cache_latents
	"$(BIN)/sgpipe" placement

lint: $(STAMP)
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .

types: $(STAMP)
	"$(BIN)/python" -m mypy

check: lint types data ## lint, types and the fast tests
	"$(BIN)/python" -m pytest -m "not slow" -n 2 --dist worksteal

test: lint types data ## everything
	"$(BIN)/python" -m pytest -n 2 --dist worksteal

bench: data ## run the benchmarks that README and docs quote
	@set -e; for file in benchmarks/[a-z]*.py; do echo "== $$file"; "$(BIN)/python" -m "benchmarks.$$(basename "$$file" .py)"; done

clean: ## remove the environment and caches, keep results
	rm -rf "$(VENV)" .pytest_cache .mypy_cache .ruff_cache .hypothesis
