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

VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' trackwatch/__init__.py)

.PHONY: help run test check lint format soak chaos fuzz bench consumer-test lock image image-test image-tools dist bare wheel-test sbom audit \
	rabbitmq promtool inotifywait clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r target meaning; do \
		printf '  make %-10s %s\n' "$$target" "$$meaning"; done

# The root travels in the environment, so that no character of its name means anything to the shell.
run: export TRACKWATCH_MAKE_ROOT = $(value ROOT)
run: $(if $(ROOT),$(RUN_ENV)) ## watch a library: make run ROOT=~/Music [ARGS=--once] > events.jsonl
ifeq ($(strip $(ROOT)),)
	$(error make run: no root to watch; name one: make run ROOT=~/Music)
else
	@root=$$TRACKWATCH_MAKE_ROOT; unset TRACKWATCH_MAKE_ROOT; exec $(BIN)/trackwatch run $(ARGS) "$$root"
endif

test: .venv/.for-tests rabbitmq promtool ## run every test, with branch coverage (a few minutes)
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
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/mypy

SECONDS ?= 600
SEED ?= 1
soak: .venv/.for-tests ## storms, kills, overflows, and an equal fold after each: make soak SECONDS=600 SEED=1
	@$(BIN)/python -m tests.soak --seconds $(SECONDS) --seed $(SEED)

chaos: .venv/.for-tests rabbitmq ## every fault of broker, line, disk and daemon, and nothing lost: make chaos SECONDS=900 SEED=1
	@$(BIN)/python -m tests.chaos --seconds $(SECONDS) --seed $(SEED) $(CHAOS_ARGS)

fuzz: .venv/.for-tests ## damaged and crafted files, all told and nobody hurt: make fuzz SECONDS=600 SEED=1
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED)

MINUTES ?= 10
bench: .cache/bench-env/.made rabbitmq inotifywait ## figures beside peers: make bench [PARTS='import idle'] [MINUTES=10] [SIZES=10000,1000000] [LIBRARIES=folder] [TO=page.md] [BEFORE=run.json]
	@.cache/bench-env/bin/python -m tests.bench $(PARTS) --minutes $(MINUTES) $(if $(SIZES),--sizes $(SIZES)) \
		$(if $(ROWS),--rows $(ROWS)) $(if $(LIBRARIES),--libraries '$(LIBRARIES)') $(if $(PRODUCT),--product '$(PRODUCT)') \
		$(if $(LABEL),--label '$(LABEL)') $(if $(TO),--to '$(TO)') $(if $(JSON),--json '$(JSON)') \
		$(if $(BEFORE),--before '$(BEFORE)') $(BENCH_ARGS)

# Docker's format, which has health checks (Docker knows no other). IMAGE_ARGS can name a base and, for an index of your
# own, secrets: '--build-arg BASE=... --secret id=pip.conf,src=...'.
ENGINE ?= $(firstword $(foreach engine,docker podman buildah,$(if $(shell command -v $(engine)),$(engine))))
image: ## build the image with docker, podman or buildah: make image [ENGINE=podman] [IMAGE_ARGS=...]
	@[ -n '$(ENGINE)' ] || { echo 'make image: install docker, podman or buildah' >&2; exit 1; }
	$(ENGINE) build $(if $(findstring docker,$(ENGINE)),,--format=docker) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
		--build-arg CREATED="$$(date -u +%Y-%m-%dT%H:%M:%SZ)" --tag trackwatch:$(VERSION) $(IMAGE_ARGS) .

# Its base image is made once and kept here.
IMAGE_FOLDER := .cache/image
image-test: .venv/.for-tests rabbitmq image-tools ## build the image and run the daemon in it, without a container engine (root)
	@TRACKWATCH_TEST_IMAGE_DIR='$(CURDIR)/$(IMAGE_FOLDER)' $(BIN)/pytest -m image tests/image $(PYTEST_ARGS)

# The second time elsewhere, with files of other times and rights, another time zone and another umask.
DIST_OF := pyproject.toml README.md CHANGELOG.md LICENSE .gitignore migrations trackwatch
BUILD = '$(CURDIR)/.cache/release/bin/python' -m build --no-isolation
dist: .cache/release/.made ## build wheel and source archive into dist/, twice, and compare the bytes
	@rm -rf dist; $(BUILD) --outdir dist . >.cache/dist.log 2>&1 || { cat .cache/dist.log >&2; exit 1; }
	@elsewhere=$$(mktemp -d) && trap 'rm -rf "$$elsewhere"' EXIT && cp -R $(DIST_OF) "$$elsewhere" && \
	find "$$elsewhere" -exec touch -t 200102030405 {} + && chmod -R go= "$$elsewhere" && \
	(cd "$$elsewhere" && umask 077 && TZ=Asia/Kolkata PYTHONHASHSEED=1 $(BUILD) --outdir again .) >.cache/dist.log 2>&1 || \
		{ cat .cache/dist.log >&2; exit 1; }; \
	for made in dist/*; do cmp "$$made" "$$elsewhere/again/$${made##*/}" >&2 || \
		{ echo "make dist: $$made is another one each time it is built" >&2; exit 1; }; done
	@cd dist && sha256sum *

# Two environments: what a user has (the wheel and what is locked for it, nothing that tests bring), and one for the
# tests, which run where there is no source to import.
WHEEL_TESTS ?= tests/unit tests/integration/test_cli.py
wheel-test: bare rabbitmq ## install the built wheel elsewhere and run tests against it
	@cd / && '$(CURDIR)/.cache/bare/bin/python' -I -c 'import importlib, pkgutil, trackwatch; \
		assert "/.cache/bare/" in trackwatch.__file__, trackwatch.__file__; \
		[importlib.import_module("trackwatch." + module.name) for module in pkgutil.iter_modules(trackwatch.__path__)]'
	@.cache/bare/bin/trackwatch version
	@$(UV) venv --quiet --clear --python '$(PYTHON)' .cache/wheel >&2
	@$(UV) pip sync --quiet --require-hashes --python .cache/wheel/bin/python requirements-dev.lock >&2
	@$(UV) pip install --quiet --no-deps --python .cache/wheel/bin/python dist/*.whl >&2
	@elsewhere=$$(mktemp -d) && trap 'rm -rf "$$elsewhere"' EXIT && \
	cp -R tests ops README.md pyproject.toml "$$elsewhere" && cd "$$elsewhere" && \
	'$(CURDIR)/.cache/wheel/bin/python' -m pytest -q -p no:cacheprovider -n $(TEST_PROCESSES) $(WHEEL_TESTS) $(PYTEST_ARGS)

# The environment that a user has, not what is declared: versions as installed, licences, who needs whom.
sbom: bare ## write down what the daemon consists of, as CycloneDX, into dist/
	@.cache/release/bin/cyclonedx-py environment .cache/bare --pyproject pyproject.toml --mc-type application \
		--output-reproducible --of JSON -o dist/trackwatch-$(VERSION).cdx.json >&2
	@echo dist/trackwatch-$(VERSION).cdx.json

bare: dist
	@$(UV) venv --quiet --clear --python '$(PYTHON)' .cache/bare >&2
	@$(UV) pip sync --quiet --require-hashes --python .cache/bare/bin/python requirements.lock >&2
	@$(UV) pip install --quiet --no-deps --python .cache/bare/bin/python dist/*.whl >&2
	@$(UV) pip check --quiet --python .cache/bare/bin/python >&2

audit: .cache/release/.made ## ask what is publicly known against the locked packages
	@.cache/release/bin/python ops/audit.py requirements.lock requirements-build.lock \
		--tools requirements-dev.lock requirements-release.lock requirements-bench.lock

consumer-test: .venv/.for-tests rabbitmq ## the example consumer rebuilds 10,000 files through kills of everything
	@$(BIN)/python -m tests.consumer --seed $(SEED) $(CONSUMER_ARGS)

format: .venv/.for-tests ## put the code into shape
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

# Hashes of every platform's packages, and no address of an index: those belong to the machine.
# Keeps what is pinned; `make lock LOCK_ARGS=--upgrade` takes the newest.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --custom-compile-command 'make lock' $(LOCK_ARGS)
LOCKS := requirements.lock requirements-dev.lock requirements-build.lock requirements-release.lock \
	requirements-bench.lock
lock: $(OWN_UV) ## write the requirements*.lock files again from pyproject.toml
	@$(COMPILE) pyproject.toml -o requirements.lock >/dev/null
	@$(COMPILE) pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock >/dev/null
	@$(COMPILE) --group build -o requirements-build.lock >/dev/null
	@$(COMPILE) --group release -c requirements-build.lock -o requirements-release.lock >/dev/null
	@$(COMPILE) --group bench -c requirements-dev.lock -o requirements-bench.lock >/dev/null
	@! grep -nE '://|^-' $(LOCKS)

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

# The tests' environment and the peers of the benchmark: apart, so that no test can need a peer.
.cache/bench-env/.made: requirements-dev.lock requirements-bench.lock requirements-build.lock pyproject.toml | $(OWN_UV)
	@echo 'installing what requirements-dev.lock and requirements-bench.lock name' >&2
	@$(UV) venv --quiet --clear --python '$(PYTHON)' .cache/bench-env >&2
	@$(UV) pip sync --quiet --require-hashes --python .cache/bench-env/bin/python requirements-dev.lock \
		requirements-bench.lock >&2
	@$(UV) pip install --quiet --no-deps --python .cache/bench-env/bin/python \
		--build-constraints requirements-build.lock -e . >&2
	@touch $@

.cache/release/.made: requirements-release.lock | $(OWN_UV)
	@echo 'installing what requirements-release.lock names' >&2
	@$(UV) venv --quiet --clear --python '$(PYTHON)' .cache/release >&2
	@$(UV) pip sync --quiet --require-hashes --python .cache/release/bin/python requirements-release.lock >&2
	@touch $@

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

# ---- what the tests need of the system: the broker of which they start nodes, and promtool, which judges the alert rules

# Both packages bring a service that would start now and at each boot. RUNLEVEL=1 keeps init scripts from starting it,
# and what was installed for the tests alone is switched off. An installation that was here before stays as it is.
# $(1): what tells that it is here, $(2): the package, which is named as its service
define install_for_tests
	@if $(1); then exit 0; fi; \
	root=; [ "$$(id -u)" = 0 ] || root='sudo -n'; \
	if ! command -v apt-get >/dev/null || ! $$root true 2>/dev/null; then \
		echo 'make test: needs $(2); install it:' \
			'sudo apt-get update && sudo apt-get install --no-install-recommends $(2)' >&2; exit 1; fi; \
	echo 'installing $(2) for the tests' >&2; \
	$$root apt-get update -qq >&2 && \
	$$root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $(2) >&2 || \
		{ echo 'make test: $(2) could not be installed, see above' >&2; exit 1; }; \
	if [ -d /run/systemd/system ]; then $$root systemctl disable --quiet --now $(2) >&2 || true; \
	elif [ -x /etc/init.d/$(2) ]; then $$root /etc/init.d/$(2) stop >&2 || true; fi
endef

rabbitmq:
	$(call install_for_tests,[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ],rabbitmq-server)

# Without it the benchmark says what it could not measure.
inotifywait:
	-$(call install_for_tests,command -v inotifywait >/dev/null,inotify-tools)

promtool:
	$(call install_for_tests,command -v promtool >/dev/null,prometheus)

# Neither has a service. The rest is on every Linux, but not allowed on every one: this tells, and makes the base.
image-tools: .venv/.for-tests
	$(call install_for_tests,command -v buildah >/dev/null,buildah)
	$(call install_for_tests,command -v debootstrap >/dev/null,debootstrap)
	@$(BIN)/python -m tests.image.engine prepare $(IMAGE_FOLDER) >&2
