# `make demo` and `make test` are all that is needed: each sets .venv up first (Python 3.11 to 3.13;
# reused while requirements/dev.lock is unchanged). `make help` lists the rest; docs/development.md
# explains it. Another interpreter: make PYTHON=/path/to/python3.12 ... (PYTHON_COMPAT for test-compat).

.DEFAULT_GOAL := help
.PHONY: help env env-compat env-gradio3 env-gradio4 env-imagereward demo tables test test-fast pytest \
	test-compat test-webui parity-image-reward parity-true-sizes lint format format-check typecheck \
	clean distclean

BIN := .venv/bin
SOURCES := crdiff_ext harness scripts tests tools install.py preload.py
ARGS ?=

# Tests never look for models on a hub, and print no progress bars.
TEST_ENV := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TOKENIZERS_PARALLELISM=false

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' \
		| while IFS='|' read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

env: ## create or update .venv from requirements/dev.lock, and install the project in it
	@python=$$(PYTHON="$(PYTHON)" sh tools/find_python.sh 3.11 3.12 3.13) \
		&& "$$python" tools/setup_env.py .venv requirements/dev.lock --project

env-compat:
	@python=$$(PYTHON="$(PYTHON_COMPAT)" sh tools/find_python.sh 3.10 3.11) \
		&& "$$python" tools/setup_env.py .venv-compat requirements/compat.lock

# Only gradio and what belongs to it; torch and pytest are .venv-compat's, seen from there.
env-gradio3 env-gradio4: env-%: env-compat
	@.venv-compat/bin/python tools/setup_env.py .venv-$* requirements/$*.lock --over .venv-compat

# Its torch is .venv's. The package (2023) needs an older transformers than the harness.
env-imagereward: env ## the image-reward package's environment, for the metric image-reward-package
	@$(BIN)/python tools/setup_env.py .venv-imagereward requirements/imagereward.lock --over .venv

demo: env ## show CR-Diff on the embedded model: table, report.html, results.json (ARGS="..." for flags)
	@$(BIN)/crdiff demo $(ARGS)

tables: env ## the paper's tables and figures, on the embedded model unless ARGS="..." names others
	@$(BIN)/crdiff tables --all $(ARGS)

test: ## everything that has to pass: lint, format, types, all tests
	@$(MAKE) --no-print-directory lint format-check typecheck
	@$(MAKE) --no-print-directory pytest

test-fast: env ## the tests without the slow ones
	$(TEST_ENV) $(BIN)/python -m pytest -m 'not live and not slow' $(ARGS)

pytest: env ## all tests (ARGS="tests/core -k plan" for some)
	$(TEST_ENV) $(BIN)/python -m pytest $(ARGS)

test-webui: env-gradio3 env-gradio4 ## tests/webui as A1111 (gradio 3.41.2) and Forge (4.40.0) have it, in a browser too
	@for env in .venv-gradio3 .venv-gradio4; do \
		echo "$$env:"; \
		$(TEST_ENV) $$env/bin/python -m pytest -p no:cacheprovider tests/webui $(ARGS) || exit 1; \
	done

test-compat: env-compat ## the core's tests as AUTOMATIC1111 has it: torch 2.1.2, Python 3.10 or 3.11
	$(TEST_ENV) .venv-compat/bin/python -m pytest -p no:cacheprovider tests/core tests/golden $(ARGS)

parity-image-reward: env-imagereward ## our ImageReward against the package's, 1e-5, random weights (5 GB of memory)
	$(TEST_ENV) $(BIN)/python -m pytest -p no:cacheprovider -m live -s tests/scorers/test_parity_package.py $(ARGS)

parity-true-sizes: env ## PickScore and Aesthetic at their true sizes, random weights (10 GB of memory)
	$(TEST_ENV) $(BIN)/python -m pytest -p no:cacheprovider -m live -s tests/scorers/test_true_sizes.py $(ARGS)

lint: env ## ruff check
	$(BIN)/ruff check $(wildcard $(SOURCES))

format: env ## rewrite the sources in the one format (ruff), import order included
	$(BIN)/ruff check --select I --fix $(wildcard $(SOURCES))
	$(BIN)/ruff format $(wildcard $(SOURCES))

format-check: env ## ruff format --check
	$(BIN)/ruff format --check $(wildcard $(SOURCES))

typecheck: env ## mypy, strict on crdiff_ext
	$(BIN)/mypy

clean: ## remove caches and build leftovers
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name '.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environments too
	rm -rf .venv .venv-compat .venv-gradio3 .venv-gradio4 .venv-imagereward
