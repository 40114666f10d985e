PYTHON    ?= python3
PROMPT    ?= a red apple
ARGS      ?=
K         ?=
WORKERS   ?= 2
PROCESSES ?= 2
INPUTS    ?= 200000
SEED      ?= 0
RUN       := .venv/bin/python
PYTEST    := $(RUN) -m pytest -n $(WORKERS) --dist loadfile

export PROMPT K           # the shell reads them from there, so quotes in them do no harm

.PHONY: help image test check lint types faults fuzz notebooks wheel miniature clean

help:                       ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

image: .venv/core           ## draw PROMPT with the small model that ships; more flags in ARGS
	$(RUN) scripts/txt2img.py --prompt "$$PROMPT" $(ARGS)

test: .venv/test            ## all tests, on CPU and without network; K="euler and not sde" for a part; WORKERS: processes
	$(RUN) -m ruff check .
	$(PYTEST) -k "$$K"

check: lint types           ## before each commit, about a minute: format, lint, types, and the tests that are quick
	$(PYTEST) -q -m pure --durations 0 --durations-min 5

lint: .venv/test            ## format and lint
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

types: .venv/test           ## the type checker
	$(RUN) -m ty check

faults: .venv/test          ## 100 kills at random points while models and pictures are written: nothing half-written, no leftovers
	$(RUN) tests/faults.py

fuzz: .venv/test            ## 200,000 damaged and hostile inputs, five minutes; INPUTS, SEED: how many, which
	PYTHONPATH=.:tests:scripts OMP_NUM_THREADS=1 $(RUN) -m support.fuzz $(INPUTS) --seed $(SEED)

notebooks: .venv/core       ## docs/notebooks/ again, from their pages
	$(RUN) scripts/notebooks.py

wheel: .venv/core           ## what pip installs, as a file in dist/
	rm -rf build            # a file that was deleted from the tree may still lie there
	$(RUN) -m pip wheel -q --no-deps --wheel-dir dist .

miniature: .venv/train      ## train the small model again, from its pictures to its card; PROCESSES: one per core or GPU
	$(RUN) scripts/miniature/data.py
	$(RUN) scripts/miniature/train_vae.py
	$(RUN) -m torch.distributed.run --nproc-per-node $(PROCESSES) scripts/miniature/train_unet.py
	$(RUN) scripts/miniature/export.py
	$(RUN) scripts/miniature/evaluate.py
	$(RUN) scripts/miniature/card.py

clean:                      ## remove .venv, build, dist and outputs
	rm -rf .venv build dist outputs

.venv/python:
	$(PYTHON) -m venv .venv
	touch $@

.venv/core: .venv/python pyproject.toml
	$(RUN) -m pip install -q -c constraints.txt -e .
	touch $@

.venv/test: .venv/core constraints.txt
	$(RUN) -m pip install -q -c constraints.txt -e ".[test]"
	$(RUN) -m pip install -q -c constraints.txt --no-deps k-diffusion   # one file of it, which needs none of its server tools
	touch $@

.venv/train: .venv/core
	$(RUN) -m pip install -q -c constraints.txt -e ".[train]"
	touch $@
