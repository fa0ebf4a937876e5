# make run      set up if needed, then the whole chain (again: only what changed)
# make test     set up if needed, then lint, types and tests
# make test-slow  the tests that take minutes: vLLM servers that are killed, more architectures
# make objectives  every RL method of objectives/ from the same start, then docs/objectives.md
# make preferences  every method of stage align from the same start, then docs/preferences.md
# make bench    speed and memory side by side with TRL (installed if missing), then docs/performance.md
# make ui       both UIs on the loopback: Prefect on port 4200, MLflow on port 5000
# make setup    only the environment, in .venv          make doctor   what this machine is and what will be chosen
# make clean    remove unfinished work and caches; models, data, reports and both databases stay
PYTHON ?= python3
PY := .venv/bin/python
ARGS ?=

.PHONY: run test test-slow lint objectives preferences bench ui setup doctor clean

run: setup
	@$(PY) -m flows.post_train $(ARGS)

test: lint
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: setup
	@$(PY) -m pytest -m slow $(ARGS)

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

objectives: setup
	@$(PY) -m dvc repro studies/objectives/dvc.yaml
	@$(PY) -m studies.objectives.page

preferences: setup
	@$(PY) -m dvc repro studies/preferences/dvc.yaml
	@$(PY) -m studies.preferences.page

bench: setup
	@$(PY) -c "import trl" 2>/dev/null || $(PY) -m pip install -q -c constraints.txt -e ".[bench]"
	@$(PY) -m benchmarks $(ARGS)

ui: setup
	@$(PY) -m posttrain.cli ui

doctor: setup
	@$(PY) -m posttrain.cli doctor

setup:
	@$(PYTHON) setup_env.py

clean:
	rm -rf .work .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
