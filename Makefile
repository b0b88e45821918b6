# Targets that run Python first see to .venv; once that is there (.venv/.installed) it costs nothing.
PYTHON ?= python3
PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup data figures study claims redraw record smoke test test-slurm fuzz lint lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: .venv/.installed ## install the pinned packages into .venv (PYTHON=... to choose an interpreter)

.venv/.installed: requirements.txt pyproject.toml
	@PYTHON="$(PYTHON)" sh tools/setup.sh

data: .venv/.installed ## download Fashion-MNIST into data/
	$(PY) -m training.data fetch --root data

figures: .venv/.installed ## train the laptop scale into runs/ and draw its figures (ARGS=... for python -m replicate)
	$(PY) -m replicate --scale laptop $(ARGS)
	$(PY) -m figures runs/laptop

study: .venv/.installed ## train what the claims are judged by, seeds and sweeps: hours (ARGS=... for replicate.study)
	$(PY) -m replicate.study $(ARGS)

redraw: .venv/.installed ## draw the figures from the committed results/, no training
	$(PY) -m figures results/long

claims: redraw ## the same, the study's figures and tables, and a verdict on each of the paper's claims
	$(PY) -m figures.claims results

STUDY := long long-held-out
record: .venv/.installed ## copy the finished runs of the study into results/, with figures, tables and the numbers in the docs
	$(PY) -m replicate.record $(notdir $(wildcard $(STUDY:%=runs/%))) --seeds 1 2 3 4 5 6 7 8 9 10
	$(PY) -m figures results/long --out results/figures
	$(PY) -m figures.claims results --out results/figures
	$(PY) -m figures.documents

smoke: .venv/.installed ## every experiment for a few steps, with its figures
	$(PY) -m replicate --scale smoke
	$(PY) -m figures runs/smoke

# One thread per worker: two workers with two thread pools each would fight over the cores. A file's tests go to one of
# them, so that the runs which they share are trained once. Where Python is told to keep no bytecode, as in many images of
# containers, each process that a test starts would compile torch, torchvision and timm anew: ten seconds.
test: .venv/.installed ## run the tests (ARGS=... for pytest)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slurm: .venv/.installed ## Figure 4's smoke scale through a Slurm of its own, installed and started for it (needs root)
	PYTHON=$(PY) sh tools/test_slurm.sh

fuzz: .venv/.installed ## grow random networks until one fails: NET2NET_FUZZ=5000 of them for each test (ARGS=... for pytest)
	NET2NET_FUZZ=$${NET2NET_FUZZ:-1000} OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 tests/net2net/test_fuzz.py $(ARGS)

lint: .venv/.installed ## check style and formatting with ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# Held down by hand: torch and torchvision are a pair; wandb 0.30 and later install a whole telemetry stack.
# Pins already in requirements.txt stay unless ARGS=--upgrade.
lock: .venv/.installed ## write requirements.txt anew from pyproject.toml (ARGS=--upgrade for newer versions)
	printf '%s\n' 'torch==2.13.0' 'torchvision==0.28.0' 'wandb<0.30' | \
	PATH="$(CURDIR)/.venv/bin:$(CURDIR)/.venv/uv-bootstrap/bin:$$PATH" uv pip compile --quiet \
	    --universal --python-version 3.11 --fork-strategy fewest --all-extras --constraints - \
	    --custom-compile-command 'make lock' --annotation-style line \
	    $(ARGS) pyproject.toml --output-file requirements.txt

clean: ## remove .venv and caches; runs/, data/ and results/ stay
	rm -rf .venv .hypothesis .pytest_cache .ruff_cache dist
	find . \( -path ./.git -o -path ./runs -o -path ./data \) -prune -o -name __pycache__ -prune -exec rm -rf {} +
