# Every target does its own set-up in .venv. PYTHON chooses the interpreter (3.11 or later) that .venv is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: build demo test quick coverage bench lint sanitize fuzz peers pythons compilers debian clean

# compile what changed, in place
build: $(VENV)/tools
	$(BIN)/python setup.py -q build_ext --inplace

demo: $(VENV)/package
	$(BIN)/virtio iperf

test: $(VENV)/dev
	tools/test.sh $(BIN)/python

# the tests that take no peer, no root and no long time: under a minute on two CPUs. Bytecode is kept below build/, also
# where PYTHONDONTWRITEBYTECODE is set: each worker would compile all test files, for ten seconds
quick: $(VENV)/dev
	PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/build/pycache $(BIN)/python -m pytest -q -n auto -p no:benchmark -m quick

# lines and branches of the Cython code that tests without peers reach, some minutes
coverage: $(VENV)/dev
	tools/coverage.sh $(BIN)/python

bench: $(VENV)/dev
	$(BIN)/python -m bench

lint: $(VENV)/dev
	tools/lint.sh $(BIN)

# all parts; each alone: sanitize-address-kernels, -address-rings, -address-devices, -address-vhost, -address-network,
# sanitize-thread
sanitize: $(VENV)/dev
	tools/sanitize.sh $(BIN)/python

sanitize-%: $(VENV)/dev
	tools/sanitize.sh $(BIN)/python $*

fuzz: $(VENV)/dev
	tools/fuzz.sh $(BIN)/python

# Debian's packages that the tests, benchmarks and sanitizers want
peers:
	tools/peers.sh

# build, install and try the package on each Python 3.11 to 3.13 of this machine
pythons:
	tools/try-pythons.sh

# build without a warning with each gcc and clang of this machine, and test kernels, rings and ports
compilers: $(VENV)/dev
	tools/try-compilers.sh $(BIN)/python

# peers, demo, lint and test in a root of Debian 13 (DEBIAN=12: of 12), made from this machine's mirror
DEBIAN ?= 13
debian: $(BIN)/python
	tools/try-debian.sh $(DEBIAN)

clean:
	rm -rf build dist *.egg-info $(VENV) .venv-*
	find virtio bench -name "*.so" -delete

$(BIN)/python:
	tools/venv.sh $(PYTHON) $(VENV)

# what a build needs: then pip builds without an environment of its own, whose Cython would be another
$(VENV)/tools: $(BIN)/python pyproject.toml
	$(BIN)/pip install -q $$($(BIN)/python tools/requirements.py)
	touch $@

# the package: this folder's path in the environment. `build` comes first, since it shows how far it is
$(VENV)/package: $(VENV)/tools setup.py | build
	$(BIN)/pip install -q --no-build-isolation -e .
	touch $@

$(VENV)/dev: $(VENV)/package pyproject.toml | build
	$(BIN)/pip install -q --no-build-isolation -e '.[dev]'
	touch $@
