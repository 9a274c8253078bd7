# Each target makes .venv and installs what it needs first, so that it works on a fresh machine.

PYTHON ?= python3
BIN := .venv/bin
ifneq ($(shell command -v uv),)
VENV := uv venv -q --allow-existing --python $(PYTHON) .venv
INSTALL := uv pip install -q --python $(BIN)/python
else
VENV := $(PYTHON) -m venv .venv
INSTALL := $(BIN)/python -m pip install -q
endif

PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: demo test test-all check
.DELETE_ON_ERROR:

demo: .venv/installed  ## train a small network on generated images, about two minutes
	$(BIN)/python main.py --dataset patterns --backbone resnet10 --width 16 --out-dim 256 --h-dim 64 \
	    --batch-size 128 --learning-rate 0.15 --epochs 5 --no-compile --exp-name demo --overwrite

test: .venv/tests-installed  ## before each commit, minutes; real CIFAR-10 is looked for in CIFAR10_DIR, or ./data
	$(PYTEST) -m "not slow"

test-all: .venv/tests-installed  ## what guards main: also the tests that are marked slow
	$(PYTEST)

check: .venv/tests-installed  ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

.venv/installed: req.txt
	$(VENV)
	$(INSTALL) -r req.txt
	touch $@

.venv/tests-installed: .venv/installed tests/req.txt
	$(INSTALL) -r tests/req.txt
	touch $@
