# `make demo` and `make test` work from a bare clone: the environment is made first.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := torch==2.13.0

.PHONY: demo test check lint types peers web format clean

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

# Optional: other frameworks, which run our NIR files and whose networks we import.
peers: $(READY)
	$(BIN)/pip install -q $(TORCH) -e ".[dev,peers]"
	$(BIN)/python -m pytest -m peers

# Optional: the web page in Chromium; needs npm, and chromium on the path.
web: $(READY)
	npm install --silent --prefix build/web onnxruntime-web@1.30.0
	$(BIN)/python -m pytest -m web

format: $(READY)
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean:
	rm -rf $(VENV) build demo *.egg-info
