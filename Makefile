# `make demo` and `make test` work from a bare clone: the environment is made first.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := torch==2.13.0

.PHONY: demo test check lint types format clean

$(READY): pyproject.toml
	python3 -m venv $(VENV)
	$(BIN)/pip install -q $(TORCH) -e ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/python -m snnir.demo demo

test: $(READY)
	$(BIN)/python -m pytest -n auto

check: lint types test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the mapped folders of an editable install, so it gets the package as it will be.
types: $(READY)
	rm -rf build/types && mkdir -p build/types/snnir
	ln -s $(CURDIR)/snnir/* $(CURDIR)/export $(CURDIR)/grammars $(CURDIR)/models $(CURDIR)/search build/types/snnir/
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p snnir

format: $(READY)
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean:
	rm -rf $(VENV) build demo *.egg-info
