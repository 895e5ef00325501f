# Every command of the course; `make` alone lists them. Needs make and a Python 3.11 to 3.13.

PYTHON_VENV := .venv/bin/python

# One environment for the tests and for what is stored in the notebooks, so that the outputs agree: no
# network, one thread (sums keep their order), the notebooks' own figures, and neither the learner's
# progress file nor their IPython settings. `!python` in a cell means the course's Python.
QUIETLY = tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT INT TERM && unset MPLBACKEND && \
	QLIB_STRICT=1 QLIB_PROGRESS_FILE="$$tmp/progress.json" IPYTHONDIR="$$tmp/ipython" \
	PATH="$$PWD/.venv/bin:$$PATH" \
	HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false \
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1

# A process for each core, to four, since each may hold a model; one file's tests stay in one process.
PYTEST = $(PYTHON_VENV) -m pytest -n logical --maxprocesses 4 --dist loadfile \
	--nbval --nbval-current-env --nbval-sanitize-with tests/sanitize.cfg --durations=10

# How the lists of mistakes are formatted: one a line.
WIDE = --line-length 200 --config format.skip-magic-trailing-comma=true --config lint.isort.split-on-trailing-comma=false

# NB=03 narrows test, test-portable, test-browser, screenshots and notebooks to one lesson.
LESSON = $(or $(wildcard notebooks/$(NB)_*.ipynb),$(error There is no lesson $(NB) in notebooks))

.PHONY: help install lab test test-families test-portable test-browser screenshots notebooks html progress bench lint clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

install: ## make .venv with everything that the lessons need (PYTHON=/path/to/python3 picks the Python)
	@sh scripts/install.sh

lab: install ## open the lessons in JupyterLab (ARGS='--no-browser --port 9000' goes to it)
	@PATH="$$PWD/.venv/bin:$$PATH" $(PYTHON_VENV) scripts/lab.py notebooks/00_start_here.ipynb $(ARGS)

test: install ## run every test and check every notebook's outputs (NB=03: one lesson)
	@$(QUIETLY) $(PYTEST) $(if $(NB),$(LESSON) $(wildcard tests/*$(NB)*.py),tests notebooks)

test-families: install ## take 112 architectures of transformers every way through qlib (some 3 minutes)
	@$(QUIETLY) $(PYTHON_VENV) -m pytest -n logical --maxprocesses 4 -m "" --durations=10 tests/test_families.py

test-portable: install ## check the notebooks' outputs with plain CPU instructions (NB=03: one lesson)
	@$(QUIETLY) ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 \
		$(PYTEST) $(if $(NB),$(LESSON),notebooks)

test-browser: install ## run the lessons in JupyterLab in Chromium or Chrome, if there is one (NB=03: one lesson)
	@$(QUIETLY) $(PYTHON_VENV) -m pytest -n logical --maxprocesses 2 --dist worksteal --durations=10 \
		tests/browser $(if $(NB),$(if $(LESSON),-k $(NB)_))

screenshots: install ## take pictures of the lessons in JupyterLab into build/screenshots, light and dark (NB=03: one lesson)
	@$(PYTHON_VENV) -m scripts.screenshots build/screenshots $(if $(NB),$(LESSON),$(wildcard notebooks/*.ipynb))

notebooks: install ## run the notebooks again and store their outputs (NB=03: one lesson)
	@$(QUIETLY) $(PYTHON_VENV) scripts/notebooks.py $(if $(NB),$(LESSON),$(wildcard notebooks/*.ipynb))

html: install ## write the lessons as web pages into build/html, to read without running them
	@$(PYTHON_VENV) scripts/pages/build.py build/html

progress: install ## show which exercises are solved
	@$(PYTHON_VENV) -m course.exercises

bench: install ## compare qlib's speed and memory with other libraries' (bench/README.md; ARGS=-h lists options)
	@sh bench/install.sh
	@bench/.venv/bin/python -m bench $(ARGS)

lint: install ## check the code's style, notebooks included
	@$(PYTHON_VENV) -m ruff check .
	@$(PYTHON_VENV) -m ruff format --check qlib course tests scripts bench
	@$(PYTHON_VENV) -m ruff format --check $(WIDE) course/exercises/lesson_*.py

clean: ## delete caches and build leftovers (not the .venvs, not the learner's progress)
	@find . \( -path ./.venv -o -path ./bench/.venv -o -path ./.git -o -path ./notebooks/scratch \) -prune -o \
		\( -name __pycache__ -o -name .ipynb_checkpoints -o -name .pytest_cache -o -name .ruff_cache \
		-o -name .hypothesis -o -name '*.egg-info' -o -name '*.ipynb.new' \) -prune -exec rm -rf {} +
	@rm -rf build dist
