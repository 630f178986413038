PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo prefer reinforce test test-failure lint types unit screenshots bench clean

demo: .venv/installed-demo  ## Tune the embedded base, pause half-way, resume, compare the answers.
	$(BIN)/python examples/demo.py

prefer: .venv/installed-demo  ## Tune the embedded base on preferences, and measure it on unseen pairs.
	$(BIN)/python examples/prefer.py

reinforce: .venv/installed-demo  ## Tune the embedded base by three graders, and measure it on unseen prompts.
	$(BIN)/python examples/reinforce.py

test: lint types unit  ## All that CI runs.

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-test
	$(BIN)/pyright

unit: .venv/installed-test .venv/installed-node
	$(BIN)/python -m pytest -n auto --dist loadgroup --durations 25

test-failure: .venv/installed-test  ## A part of `unit`: jobs disturbed at every point, and a table of what became of them.
	$(BIN)/python -m pytest -n 2 --dist loadscope tests/failure/points

screenshots: .venv/installed-test  ## The pictures of docs/images/, taken anew.
	WRITE_SCREENSHOTS=1 $(BIN)/python -m pytest tests/dashboard/test_screenshots.py

bench: .venv/installed-test  ## Measure, beside TRL, what docs/benchmarks.md tells; ARGS="--quick" for a look.
	$(BIN)/python -m benchmarks $(ARGS)

.venv/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

# OpenAI's client for Node, and axe-core. Where they cannot be had their tests are skipped, and say so.
.venv/installed-node: tests/clients/node/package.json .venv/installed-test
	-$(BIN)/python -m tests.clients.install && touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
