# facerep: `make demo` shows what it does, `make test` shows that it works.
# Both set everything up first; that costs about four minutes once and nothing afterwards.

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
# FFCV is compiled against OpenCV and libturbojpeg; Slurm, munge and a database for its accounting serve the tests.
SYSTEM_PACKAGES := build-essential pkg-config libturbojpeg0-dev libopencv-dev slurm-wlm munge \
                   slurmdbd mariadb-server-core mariadb-client-core

.DEFAULT_GOAL := help
.PHONY: help setup system demo results test test-slow lint bench

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

setup: $(VENV)/.complete  ## system packages and the virtual environment

system:
	@missing=; for p in $(SYSTEM_PACKAGES); do \
	  dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	command="apt-get install -y --no-install-recommends$$missing"; \
	if [ "$$(id -u)" != 0 ]; then echo "Run this first, then make again:"; echo "  sudo $$command"; exit 1; fi; \
	echo "installing$$missing"; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$command >/dev/null

$(VENV)/.complete: setup.cfg pyproject.toml | system
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --disable-pip-version-check -e '.[dev]'
	@# ffcv and retina-face bring two builds of OpenCV into one folder: the headless one must be the last
	$(RUN) -m pip install -q --disable-pip-version-check --force-reinstall --no-deps opencv-contrib-python-headless
	touch $@

demo: setup  ## photographs to a report, small: runs/demo/report/index.html
	$(RUN) -m slurm pipeline configs/demo.yaml

results: setup  ## the studies of docs/results.md: three seeds of the demo, and of every method (hours)
	$(RUN) -m slurm pipeline configs/results.yaml
	$(RUN) -m slurm pipeline configs/methods.yaml

test: setup  ## everything but the long tests
	$(RUN) -m pytest -n 2 --dist loadgroup -m "not slow and not gpu"

test-slow: setup  ## long Slurm and kill tests
	$(RUN) -m pytest -m "slow and not gpu"

lint: setup  ## linter, formatter, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: setup  ## every benchmark, each a ratio against a baseline of the same run
	@for b in benchmarks/*.py; do echo "== $$b"; $(RUN) $$b || exit 1; done
