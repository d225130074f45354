# kvmkit: `make run` boots a stock Debian kernel, `make test` runs the whole suite.
#
# Each step leaves a file, so that a second run does nothing but the last one.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/stamps

# What `make run` boots, and what `make test` boots as well
KERNEL       := linux-image-cloud-amd64
BUSYBOX      := busybox-static
TEST_KERNELS := linux-image-amd64 linux-image-6.12-cloud-amd64 linux-image-6.12-amd64

# Where `kvmkit image pull` puts them
IMAGES := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kvmkit/images
GUEST  := $(IMAGES)/$(KERNEL)/about $(IMAGES)/$(BUSYBOX)/about

CORE    := $(wildcard kvmkit/engine/soft/core/* kvmkit/guest/agent/*)
WORKERS := 2

.DEFAULT_GOAL := help
.PHONY: help run test test-kernels lint bench clean
.DELETE_ON_ERROR:

help:
	@echo "make run    set everything up and boot a Debian kernel to a shell"
	@echo "            (without a terminal: run uname -a in it)"
	@echo "make test   set up and run ruff, mypy and all tests"
	@echo "make lint   ruff and mypy only"
	@echo "make bench  measure start-up, boots and work against QEMU, where it is installed"
	@echo "make clean  remove what the above made here (pulled kernels stay in the cache)"

run: $(STAMPS)/package $(GUEST)
	@if [ -t 0 ] && [ -t 1 ]; then exec $(BIN)/kvmkit run; \
	else exec $(BIN)/kvmkit run -- uname -a; fi

test: $(STAMPS)/dev $(GUEST) test-kernels
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n $(WORKERS)

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMPS)/dev $(GUEST)
	$(BIN)/python benchmarks/run_all.py --print

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f kvmkit/engine/soft/*.so
	find kvmkit tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The virtual environment: tools/prepare-host says what a bare machine lacks.
$(STAMPS)/venv:
	@PYTHON="$(PYTHON)" sh tools/prepare-host
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) \
		|| "$$(command -v python3.11 || command -v python3)" -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

# Editable: a changed Python file needs no second installation, a changed C file gets one.
$(STAMPS)/package: $(STAMPS)/venv pyproject.toml setup.py $(CORE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(STAMPS)/dev: $(STAMPS)/package
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(IMAGES)/%/about: | $(STAMPS)/package
	$(BIN)/kvmkit image pull $*

# A kernel that this machine's package sources do not have is no failure: its tests skip.
test-kernels: | $(STAMPS)/package
	@for package in $(TEST_KERNELS); do \
		test -e $(IMAGES)/$$package/about || $(BIN)/kvmkit image pull $$package \
		|| echo "make: without $$package, its tests are skipped"; done
