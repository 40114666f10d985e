PYTHON ?= python3
PROMPT ?= a red apple
ARGS   ?=
PROCESSES ?= 2
RUN    := .venv/bin/python

export PROMPT             # the shell reads it from there, so quotes in it do no harm

.PHONY: image test miniature clean

image: .venv/core           ## draw PROMPT with the small model that ships; more flags in ARGS
	$(RUN) scripts/txt2img.py --prompt "$$PROMPT" $(ARGS)

test: .venv/test            ## all tests, on CPU and without network
	$(RUN) -m ruff check .
	$(RUN) -m pytest -n 2 --dist loadfile

miniature: .venv/train    ## train the small model again, from its pictures to its card; PROCESSES: one per core or GPU
	$(RUN) scripts/miniature/data.py
	$(RUN) scripts/miniature/train_vae.py
	$(RUN) -m torch.distributed.run --nproc-per-node $(PROCESSES) scripts/miniature/train_unet.py
	$(RUN) scripts/miniature/export.py
	$(RUN) scripts/miniature/evaluate.py
	$(RUN) scripts/miniature/card.py

clean:
	rm -rf .venv build outputs

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
