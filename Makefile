# On a fresh machine: `make demo` sets up and runs the main job on real input, `make test` sets up and runs all tests.
PYTHON ?= python3
BIN := .venv/bin
# A process a core; a file's tests stay together, because they share what they set up.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-lowest check docs dist bench gpu clean
demo: .venv/demo
	$(BIN)/python examples/ratings.py outputs/ratings.csv
	$(BIN)/hf-lora train --model "$$($(BIN)/python examples/ratings.py --model)" --train outputs/ratings.csv \
		--base-id sentence-transformers/all-MiniLM-L6-v2 --language en --license apache-2.0 \
		--output outputs/demo --overwrite
	$(BIN)/hf-lora evaluate outputs/demo

test: .venv/test
	$(PYTEST)

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow"

# With the oldest versions that pyproject.toml allows, in an environment of its own; torch 2.6 brings CUDA's libraries.
LOWEST := .venv-lowest
test-lowest: $(LOWEST)/lowest
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(addprefix tests/test_,$(addsuffix .py, \
		commands configs front hub linear loading merging names reading resume run saving trainer))

# Into site/, without a warning and without a font or script of another host.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The wheel and the source distribution, into dist/.
dist:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt build
	rm -rf dist
	$(BIN)/python -m build --outdir dist

bench: .venv/test
	$(BIN)/python -m benchmarks

# On a machine with one GPU, with what is installed there: no network, six minutes at most.
gpu:
	$(PYTHON) -m benchmarks.gpu

clean:
	rm -rf .venv $(LOWEST) dist site

# One virtual environment, one stamp an extra; a changed pyproject.toml or constraints.txt installs anew.
# torch comes first, so that the pinned CPU build is there before anything asks for another.
.venv/%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

$(LOWEST)/lowest: pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt \
		-e '.[lowest]'
	touch $@
