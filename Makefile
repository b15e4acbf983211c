# make help    what can be made, in one line each

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help env demo test coverage lint types docs grammar native clean-native memcheck bench soak lock build install uninstall clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

## Development ------------------------------------------------------------------

# Without byte code, which not every start may write, each compiles what it imports.
env: $(BIN)/mailproxy  ## the environment in .venv, from requirements-dev.txt
	@$(BIN)/python -m compileall -q mailproxy

# The stamp is the installed command itself; a changed lock file or project file renews it.
$(BIN)/mailproxy: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("mailproxy needs Python 3.11 or newer, this is %d.%d; try: make PYTHON=python3.13" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

demo: env  ## a whole mail site on this machine, with the proxy in front of it
	@$(BIN)/mailproxy demo $(DEMO)

# It should take less than eight minutes on two idle cores.
test: env  ## everything that has to be green: lint, types, all tests
	@began=$$(date +%s); \
	$(MAKE) --no-print-directory lint types && \
	$(BIN)/python -m $(if $(TESTS),pytest $(TESTS),tests.rooms); \
	status=$$?; took=$$(($$(date +%s) - began)); \
	printf 'make test: %d min %02d s\n' $$((took / 60)) $$((took % 60)); exit $$status

# Workers that run as another user leave their data there, too: so all may write.
coverage: env  ## which lines and branches no test runs, workers' included; TESTS=tests/net
	rm -rf build/coverage
	install -d -m 755 build
	install -d -m 1777 build/coverage
	COVERAGE_FILE=$(CURDIR)/build/coverage/data $(BIN)/coverage run -m pytest $(TESTS); \
	status=$$?; \
	COVERAGE_FILE=$(CURDIR)/build/coverage/data $(BIN)/coverage combine --quiet && \
	COVERAGE_FILE=$(CURDIR)/build/coverage/data $(BIN)/coverage report && exit $$status

lint: env  ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: env  ## mypy, strict
	$(BIN)/mypy

docs: env  ## docs/directives.md and the table in README.md, from the code
	$(BIN)/python docs/generate.py

grammar: env  ## mailproxy/conf/grammar_table.py, from grammar/nginx.lark
	$(BIN)/python -m mailproxy.conf.grammar

native: env  ## the compiled core, in mailproxy/; `make clean-native` removes it
	rm -f mailproxy/_core.*.so
	$(BIN)/python setup.py --quiet build_ext --inplace
	@$(BIN)/python -c 'from mailproxy import compiled; print(compiled.problem() or compiled.form())'

clean-native:  ## pure Python again
	rm -rf mailproxy/_core.*.so build/core

# Invalid reads and writes of the compiled core, and what C leaves undefined. It takes four
# minutes, half of them to compile.
MEMCHECK = tests/net/test_calls.py tests/net/test_relay.py tests/net/test_wire.py \
	tests/net/test_wire_tls.py tests/net/test_lines.py tests/net/test_rearming.py \
	tests/net/test_engine.py tests/net/test_driven.py tests/mail/test_octets.py
SANITIZERS = -fsanitize=address,undefined -fno-sanitize-recover=undefined
memcheck: env clean-native  ## tests of the compiled core with gcc's sanitizers
	CORE_CFLAGS="-O1 -g1 -fno-omit-frame-pointer $(SANITIZERS)" CORE_LDFLAGS="$(SANITIZERS)" \
		$(BIN)/python setup.py --quiet build_ext --inplace
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)"; \
	export LD_PRELOAD PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0; \
	$(BIN)/python -c 'from mailproxy import compiled; assert compiled.form() == "compiled core"' && \
	$(BIN)/python -m pytest -q $(MEMCHECK); \
	status=$$?; unset LD_PRELOAD; rm -rf mailproxy/_core.*.so build/core; exit $$status

bench: env  ## CPU time and memory beside nginx, 3 minutes; BENCH="--cases S1 --rounds 5"
	@$(BIN)/python -m bench $(BENCH)

soak: env  ## 100 000 sessions, 100 reloads: is memory flat? SOAK="--sessions 10000"
	$(BIN)/python bench/soak.py $(SOAK)

# uv resolves once for all supported Pythons; pip installs what it wrote.
LOCK = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock"

lock: env  ## requirements*.txt anew, with the newest versions
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(LOCK) pyproject.toml --output-file requirements.txt
	$(LOCK) --group build --output-file requirements-build.txt
	$(LOCK) pyproject.toml --group dev --constraint requirements.txt --output-file requirements-dev.txt
	$(BIN)/python -m pip uninstall --quiet --yes uv

build: env  ## sdist and wheel in dist/
	$(BIN)/python -m build --no-isolation

## Installation -----------------------------------------------------------------
# make install PREFIX=/usr DESTDIR=$$PWD/debian/tmp DEPENDENCIES=system

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=
DEPENDENCIES ?= bundled

SBINDIR = $(DESTDIR)$(PREFIX)/sbin
LIBDIR = $(DESTDIR)$(PREFIX)/lib/mailproxy
SHAREDIR = $(DESTDIR)$(PREFIX)/share
UNITDIR = $(DESTDIR)$(PREFIX)/lib/systemd/system
SYSUSERSDIR = $(DESTDIR)$(PREFIX)/lib/sysusers.d
LOGROTATEDIR = $(DESTDIR)$(SYSCONFDIR)/logrotate.d
CONFDIR = $(DESTDIR)$(SYSCONFDIR)/mailproxy

install:  ## the program, manual, completion, units; PREFIX, DESTDIR, DEPENDENCIES=system
	install -d build $(LIBDIR) $(SBINDIR) $(CONFDIR)/conf.d
ifeq ($(DEPENDENCIES),bundled)
	$(PYTHON) -m venv build/pip
	build/pip/bin/pip install --quiet --disable-pip-version-check --require-hashes --upgrade \
		--target $(LIBDIR) -r requirements.txt
	rm -rf $(LIBDIR)/bin
endif
	rm -rf $(LIBDIR)/mailproxy
	cp -RL mailproxy $(LIBDIR)/
	find $(LIBDIR)/mailproxy -name __pycache__ -prune -exec rm -rf {} +
	rm -f $(LIBDIR)/mailproxy/_core.*.so
ifeq ($(DEPENDENCIES),bundled)
	-build/pip/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-build.txt
	-build/pip/bin/python setup.py --quiet build_ext --build-lib $(LIBDIR)
else
	-$(PYTHON) setup.py --quiet build_ext --build-lib $(LIBDIR)
endif
	$(PYTHON) -m compileall -q -f -s $(DESTDIR)/ -p / $(LIBDIR)/mailproxy
	sed "s|@PYTHON@|$$($(PYTHON) -c 'import os, sys; print(os.path.realpath(sys.executable))')|" \
		system/mailproxy.in > build/mailproxy
	install -m 755 build/mailproxy $(SBINDIR)/mailproxy
	install -D -m 644 system/mailproxy.8 $(SHAREDIR)/man/man8/mailproxy.8
	install -D -m 644 system/completion.bash $(SHAREDIR)/bash-completion/completions/mailproxy
	install -D -m 644 system/completion.zsh $(SHAREDIR)/zsh/site-functions/_mailproxy
	sed 's|@SBINDIR@|$(PREFIX)/sbin|' system/mailproxy.service > build/mailproxy.service
	install -D -m 644 build/mailproxy.service $(UNITDIR)/mailproxy.service
	install -D -m 644 system/mailproxy.socket $(UNITDIR)/mailproxy.socket
	install -D -m 644 system/sysusers.conf $(SYSUSERSDIR)/mailproxy.conf
	install -D -m 644 system/logrotate.conf $(LOGROTATEDIR)/mailproxy
	test -e $(CONFDIR)/mailproxy.conf || install -m 644 system/mailproxy.conf $(CONFDIR)/mailproxy.conf
	install -d $(SHAREDIR)/doc/mailproxy/examples
	install -m 644 README.md CHANGELOG.md LICENSE docs/*.md $(SHAREDIR)/doc/mailproxy
	install -m 644 conf.d/* $(SHAREDIR)/doc/mailproxy/examples

uninstall:  ## remove what `make install` put there, but the configuration
	rm -rf $(LIBDIR) $(SHAREDIR)/doc/mailproxy
	rm -f $(SBINDIR)/mailproxy $(SHAREDIR)/man/man8/mailproxy.8 \
		$(SHAREDIR)/bash-completion/completions/mailproxy \
		$(SHAREDIR)/zsh/site-functions/_mailproxy \
		$(UNITDIR)/mailproxy.service $(UNITDIR)/mailproxy.socket \
		$(SYSUSERSDIR)/mailproxy.conf $(LOGROTATEDIR)/mailproxy

clean:  ## remove what was made
	rm -rf $(VENV) build dist mailproxy/_core.*.so *.egg-info demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
