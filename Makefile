# Needs Python 3.11 or newer and make; fetches everything else. `make help` lists the targets.
# All chatter goes to standard error: `make run ROOT=... > events.jsonl` holds events and nothing else.

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
COVERAGE_MIN ?= 85
# Most of the tests' time is waiting, so several run at once, each process with a broker of its own and whole files of
# tests, in the order of their names: that of the slowest. More processes gain little on two cores, and the kernel grants
# a user no more than 128 inotify instances.
TEST_PROCESSES ?= 3
QUICK_TESTS := tests/unit tests/property

BIN := .venv/bin
# A uv that is here and runs, else our own, from the lock. (A pyenv shim is here, yet need not run.)
UV ?= $(shell uv --version >/dev/null 2>&1 && echo uv || echo .cache/uv/bin/uv)
OWN_UV := $(filter .cache/%,$(UV))
# The tests' environment can do all that the smaller one can: once it is there, `make run` uses it as well.
RUN_ENV := $(if $(wildcard .venv/.for-tests),.venv/.for-tests,.venv/.for-run)

.PHONY: help run test check lint format soak chaos fuzz lock rabbitmq clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r target meaning; do \
		printf '  make %-9s %s\n' "$$target" "$$meaning"; done

# The root travels in the environment, so that no character of its name means anything to the shell.
run: export TRACKWATCH_MAKE_ROOT = $(value ROOT)
run: $(if $(ROOT),$(RUN_ENV)) ## watch a library: make run ROOT=~/Music [ARGS=--once] > events.jsonl
ifeq ($(strip $(ROOT)),)
	$(error make run: no root to watch; name one: make run ROOT=~/Music)
else
	@root=$$TRACKWATCH_MAKE_ROOT; unset TRACKWATCH_MAKE_ROOT; exec $(BIN)/trackwatch run $(ARGS) "$$root"
endif

test: .venv/.for-tests rabbitmq ## run every test, with branch coverage (a few minutes)
	@rm -f .coverage .coverage.* .cache/test.status; mkdir -p .cache
	@{ $(BIN)/coverage run -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS); \
		echo $$? > .cache/test.status; } | tee .cache/test.log
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --fail-under=$(COVERAGE_MIN) || echo 2 > .cache/coverage.status; \
	covered=$$(cat .cache/coverage.status 2>/dev/null || echo 0); rm -f .cache/coverage.status; \
	tail -n 1 .cache/test.log; \
	[ "$$covered" = 0 ] || echo 'make test: the coverage is below $(COVERAGE_MIN) %' >&2; \
	[ "$$(cat .cache/test.status)" = 0 ] && [ "$$covered" = 0 ]

check: lint ## the quick loop: format, lint, types, unit and property tests (under a minute)
	@$(BIN)/pytest -q $(QUICK_TESTS)

lint: .venv/.for-tests ## format, lint and types alone
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

SECONDS ?= 600
SEED ?= 1
soak: .venv/.for-tests ## storms, kills, overflows, and an equal fold after each: make soak SECONDS=600 SEED=1
	@$(BIN)/python -m tests.soak --seconds $(SECONDS) --seed $(SEED)

chaos: .venv/.for-tests rabbitmq ## every fault of broker, line, disk and daemon, and nothing lost: make chaos SECONDS=900 SEED=1
	@$(BIN)/python -m tests.chaos --seconds $(SECONDS) --seed $(SEED) $(CHAOS_ARGS)

fuzz: .venv/.for-tests ## damaged and crafted files, all told and nobody hurt: make fuzz SECONDS=600 SEED=1
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED)

format: .venv/.for-tests ## put the code into shape
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

# Hashes of every platform's packages, and no address of an index: those belong to the machine.
# Keeps what is pinned; `make lock LOCK_ARGS=--upgrade` takes the newest.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --custom-compile-command 'make lock' $(LOCK_ARGS)
lock: $(OWN_UV) ## write the requirements*.lock files again from pyproject.toml
	@$(COMPILE) pyproject.toml -o requirements.lock >/dev/null
	@$(COMPILE) pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock >/dev/null
	@$(COMPILE) --group build -o requirements-build.lock >/dev/null
	@$(COMPILE) --group bench -c requirements-dev.lock -o requirements-bench.lock >/dev/null
	@! grep -nE '://|^-' requirements.lock requirements-dev.lock requirements-build.lock requirements-bench.lock

clean: ## remove what make has made
	@rm -rf .venv .cache .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis dist

# ---- environments; a stamp says from which locks one was made

define make_env
	@if ! { [ -x $(BIN)/python ] && $(BIN)/python -c ''; } 2>/dev/null; then \
		echo 'making .venv' >&2; $(UV) venv --quiet --clear --python '$(PYTHON)' .venv >&2; fi
	@echo 'installing what $(1) names' >&2
	@$(UV) pip sync --quiet --require-hashes --python $(BIN)/python $(1) >&2
	@$(UV) pip install --quiet --no-deps --python $(BIN)/python --build-constraints requirements-build.lock -e . >&2
	@rm -f .venv/.for-run .venv/.for-tests; touch $@
endef

.venv/.for-run: requirements.lock requirements-build.lock pyproject.toml | $(OWN_UV)
	$(call make_env,requirements.lock)

.venv/.for-tests: requirements-dev.lock requirements-build.lock pyproject.toml | $(OWN_UV)
	$(call make_env,requirements-dev.lock)

.cache/uv/bin/uv: requirements-build.lock
	@echo 'fetching uv' >&2
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' >&2 || \
		{ echo 'make: needs Python 3.11 or newer; install python3.11, or say make PYTHON=/path/to/it' >&2; exit 1; }
	@rm -rf .cache/uv; mkdir -p .cache
	@'$(PYTHON)' -m venv .cache/uv >.cache/uv.log 2>&1 || { cat .cache/uv.log >&2; rm -rf .cache/uv; \
		echo 'make: cannot make a virtual environment; install uv, or python3-venv (apt-get install python3-venv)' >&2; \
		exit 1; }
	@.cache/uv/bin/python -m pip --quiet --disable-pip-version-check install --require-hashes \
		-r requirements-build.lock >&2
	@touch $@

# ---- the broker that the tests start nodes of

# The package brings a service that would start now and at each boot. RUNLEVEL=1 keeps init scripts from starting it,
# and what was installed for the tests alone is switched off. An installation that was here before stays as it is.
rabbitmq:
	@if [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]; then exit 0; fi; \
	root=; [ "$$(id -u)" = 0 ] || root='sudo -n'; \
	if ! command -v apt-get >/dev/null || ! $$root true 2>/dev/null; then \
		echo 'make test: needs the RabbitMQ server in /usr/lib/rabbitmq; install it:' \
			'sudo apt-get update && sudo apt-get install --no-install-recommends rabbitmq-server' >&2; exit 1; fi; \
	echo 'installing rabbitmq-server for the tests' >&2; \
	$$root apt-get update -qq >&2 && \
	$$root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends rabbitmq-server >&2 || \
		{ echo 'make test: rabbitmq-server could not be installed, see above' >&2; exit 1; }; \
	if [ -d /run/systemd/system ]; then $$root systemctl disable --quiet --now rabbitmq-server >&2 || true; \
	elif [ -x /etc/init.d/rabbitmq-server ]; then $$root /etc/init.d/rabbitmq-server stop >&2 || true; fi
