# lunatik-bridge: everything is reached from here; `make help` lists it.
#
# A first run installs what is missing and builds the lab's image; later runs reuse
# both. Nothing is installed outside .venv and the user's cache directory, except
# packages that are missing, which apt installs and setup names.

VENV := .venv
BIN := $(VENV)/bin
# The environment is made anew when what it holds would change.
STAMP := $(VENV)/.made-$(shell sha256sum pyproject.toml | cut -c1-12)
SHELL_SCRIPTS = $(shell git ls-files '*.sh')
LUA_FILES = $(shell git ls-files '*.lua')
# Checks of the kernel module, see there.
KMOD_CHECK ?= $(BIN)/python -m bridge.kmodcheck

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz test-sanitizers check setup image programs check-programs format \
        clean distclean check-python check-lua check-shell check-kmod

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## show a packet policy at work in a kernel, in a throw-away machine
	@$(BIN)/lunabridge demo

test: setup ## run every test, on the host and in the lab (KERNEL=6.1: on that)
	@$(BIN)/pytest --guests=2 $(if $(CI),--fail-on-skip) $(if $(KERNEL),--kernel=$(KERNEL))

test-sanitizers: setup ## run the kernel tests on a kernel that finds its own bugs (KASAN, lockdep, ...)
	@$(BIN)/lunabridge lab image --kernel sanitizer >/dev/null
	@$(BIN)/pytest -m kernel --kernel=sanitizer --guests=2 $(if $(CI),--fail-on-skip)

fuzz: setup ## fuzz, stress and out-of-memory tests, to the full count (KERNEL= as above)
	@$(BIN)/pytest --long -rP --guests=2 -o lunabridge_timeout_s=1800 $(if $(KERNEL),--kernel=$(KERNEL)) tests/fuzz tests/stress tests/memory

check: check-python check-lua check-shell check-kmod ## formatters, linters and types

setup: programs $(STAMP) ## install what is missing, and make .venv

image: setup ## build the lab's image, if it is not there yet
	@$(BIN)/lunabridge lab image

programs:
	@bridge/setup.sh programs

$(STAMP): pyproject.toml
	@echo "setup: making $(VENV)" >&2
	@rm -rf $(VENV)
	@"$$(bridge/setup.sh python)" -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

check-programs:
	@bridge/setup.sh programs check

check-python: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check-lua: check-programs
	luacheck --quiet --std lua54 $(LUA_FILES)

check-shell: check-programs
	shellcheck $(SHELL_SCRIPTS)

check-kmod: setup
	$(KMOD_CHECK)

format: setup ## let the formatters rewrite the Python files
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove build products and what killed runs left behind
	rm -rf build
	@if [ -x $(BIN)/lunabridge ]; then $(BIN)/lunabridge clean; fi

distclean: clean ## remove .venv and the cached images too
	@if [ -x $(BIN)/lunabridge ]; then $(BIN)/lunabridge lab image --remove; fi
	rm -rf $(VENV)
