# Each target does its own set-up: a virtual environment in .venv with the project and its tools.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow bench chaos docs lint clean

demo: .venv/installed  ## the main job on the embedded default, in runs/demo
	$(BIN)/dfkd experiment=demo run_dir=runs/demo

test: .venv/installed  ## the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: .venv/installed  ## real runs on CIFAR-10 (JPEG), where it is at hand
	$(BIN)/python -m pytest -m slow -s

bench: .venv/installed  ## speed and memory of an inversion step, and what dreams give back, into benchmarks/ and docs/
	$(BIN)/python -W ignore benchmarks/inversion_step.py
	$(BIN)/python -W ignore benchmarks/restored_by_dreams.py

chaos: .venv/installed  ## twenty kills at random moments of whole runs, which end as undisturbed ones; a quarter of an hour
	$(BIN)/python benchmarks/chaos.py

docs: .venv/installed  ## the site, into site/; it opens from the folder
	$(BIN)/python -m pip install --quiet --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: .venv/installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dfkd needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@# setuptools warns of every editable install
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info
