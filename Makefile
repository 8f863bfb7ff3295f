# One command for each job. Every target makes what it needs: on a fresh machine `make demo` or `make test` is all.
#   make demo     read a handwritten form with the model of the package (ARGS='--question "What is the floor?"' asks more)
#   make test     run the tests (ARGS="-k cache" is passed on to pytest)
#   make style    put the code in form
#   make quality  check form, lint and types
#   make peer-tests  run the common tests of transformers and PEFT on our classes (downloads them; two minutes)
#   make client-tests  run LangChain, LiteLLM's proxy and the Vercel AI SDK against the server (downloads them, npm needed)
#   make ray-tests  run the server on two nodes of a Ray cluster on this machine (downloads Ray; three minutes)
#   make docs     build the documentation as a site, site/index.html; a broken link fails
#   make bench    time the decoding loop at toy size (ARGS="--shape small" for another)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CLIENTS ?= .clients
RAY ?= .ray

.PHONY: demo test peer-tests client-tests ray-tests style quality docs bench clean

demo: $(INSTALLED)
	$(BIN)/python examples/generate.py $(ARGS)

# Two workers of one thread each are faster here than one worker of two threads: toy models have no work to split.
# Modules and tests are compiled once, not by every worker and process again.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

peer-tests: $(INSTALLED)
	$(BIN)/python tests/peers/sources.py
	PEER_TESTS=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -c tests/peers/pytest.ini -n 2 tests/peers $(ARGS)

client-tests: $(INSTALLED) $(CLIENTS)/.installed
	CLIENTS=$(CLIENTS) $(BIN)/python -m pytest -n 0 -m slow tests/serve/test_serving_clients.py $(ARGS)

ray-tests: $(RAY)/.installed
	OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest -n 0 -m slow tests/serve/test_serving_ray.py $(ARGS)

style: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet $(ARGS)

bench: $(INSTALLED)
	$(BIN)/python benchmarks/decode.py --shape tiny $(ARGS)

clean:
	rm -rf $(VENV) $(CLIENTS) $(RAY) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamp is written last: an interrupted installation is taken up again. The version stands in __init__.py.
$(INSTALLED): pyproject.toml setup.cfg constraints.txt src/dimple_hf/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than 3.11, which transformers 5.23 needs: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(CLIENTS)/.installed: tests/serve/clients/requirements.txt tests/serve/clients/package.json
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --requirement tests/serve/clients/requirements.txt
	cp tests/serve/clients/package.json $(CLIENTS)/
	npm install --prefix $(CLIENTS) --no-audit --no-fund --silent
	touch $@

$(RAY)/.installed: pyproject.toml setup.cfg constraints.txt src/dimple_hf/__init__.py
	test -x $(RAY)/bin/python || $(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[ray,test]'
	touch $@
