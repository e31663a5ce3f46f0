PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: quickstart quickstart-short demo test slow browser docs install clean

## Both stages on drawn faces, end to end; pictures and figures land in runs/quickstart.
quickstart: install
	$(BIN)/python run.py quickstart

## The same in about a minute: every step is taken, the pictures stay poor.
quickstart-short: install
	$(BIN)/python run.py quickstart --short --run runs/quickstart-short

## A page on which to try the weights that ship, opened in a browser.
demo: install
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	$(BIN)/python run.py demo --open

## Lint, types and tests.
test: install
	$(BIN)/python -m pytest

## The checks that train for minutes.
slow: install
	$(BIN)/python -m pytest -m slow

## The demo's page, used in Chromium, which has to be there: on Debian apt-get install chromium.
browser: install
	$(BIN)/python -m pip install --quiet --editable '.[demo,browser]'
	$(BIN)/python -m pytest -n 0 -m browser tests/pipelines/demo

## The pages of docs/ as a site in site/, links checked.
docs: install
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv runs site
