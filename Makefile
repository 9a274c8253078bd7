# `make demo` and `make test` are the two commands of a fresh machine: each makes .venv and installs what it needs.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check
.DELETE_ON_ERROR:

demo: .venv/installed  ## train on generated patterns, on whatever the machine has, and open nothing
	$(BIN)/python main.py --dataset patterns --backbone resnet10 --width 16 --out-dim 256 --h-dim 64 \
	    --batch-size 128 --learning-rate 0.15 --epochs 5 --no-compile --exp-name demo --overwrite

test: .venv/tests-installed  ## all tests; those on real CIFAR-10 look for it in CIFAR10_DIR, or ./data
	$(BIN)/python -m pytest

check: .venv/tests-installed  ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

.venv/installed: req.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -r req.txt
	touch $@

.venv/tests-installed: .venv/installed tests/req.txt
	$(BIN)/python -m pip install -q -r tests/req.txt
	touch $@
