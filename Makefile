# make demo       build and boot Linux 6.12 with ThinLTO, from nothing
# make test       everything: ruff, mypy, fast tests, real kernels; from nothing
# make test-fast  ruff, mypy and most tests that need no kernel; under two minutes
# make bench      speed, as ratios measured in one run
# make fuzz       damaged objects against the readers: INPUTS=2000000 of them, or as many as are said
# make hunt-demo  five small random 6.12 kernels, built and booted; what fails is explained and minimised
# make soak       what takes hours: more kernels, more faults
.PHONY: help demo hunt-demo setup lint test test-fast test-real bench fuzz soak
.NOTPARALLEL:
.DEFAULT_GOAL := help
python := .venv/bin/python

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo:
	@scripts/demo.sh

hunt-demo:
	@scripts/hunt-demo.sh

setup:
	@scripts/setup.sh test

lint: setup
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

test-fast: lint
	$(python) -m pytest -n auto --dist worksteal -m "not slow" tests/fast

test-slow: setup
	$(python) -m pytest -n auto --dist worksteal -m slow tests/fast

test-real: setup
	$(python) -m pytest tests/real

# Real kernels take both processors for themselves, so their tests do not run side by side.
test: test-fast test-slow test-real

bench: setup
	$(python) -m bench

# Kernels that "make test" has built, if it has: their objects are damaged too.
kernels = $(wildcard $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/klto/test/x86_64-6.12 \
	$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/klto/test/arm64-6.12)

fuzz: setup
	$(python) -m tests.fuzz.objects --inputs $(or $(INPUTS),2000000) $(foreach dir,$(kernels),--kernel $(dir))

soak: setup
	$(python) -m pytest tests/soak
