# make demo: set up and generate text on the bundled checkpoint. make test: set up and run all tests.
# Every path is relative, so that the checkout may lie in a folder with spaces in its name.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet -c constraints.txt
NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' -o -name '*.inl')

.PHONY: demo test test-slow lint wheel-check clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(PY) -m seekernel generate

test: $(VENV)/.installed-test
	$(PY) -m pytest $(PYTEST_ARGS)

# Kernels of other projects, built from their wheels, and long races: some twenty minutes.
test-slow: $(VENV)/.installed-test
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' '*.inl' | xargs -r $(VENV)/bin/clang-format --dry-run -Werror
	rm -rf build/typed
	$(PY) setup.py -q build_py --build-lib build/typed
	MYPYPATH=build/typed $(PY) -m mypy -p seekernel -p tests -p benchmarks

# The wheel, installed where nothing else is, imports and finds its parts.
wheel-check: $(VENV)/.installed
	rm -rf build/wheel build/wheel-venv
	$(PY) -m pip --disable-pip-version-check wheel --quiet --no-build-isolation --no-deps -w build/wheel .
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt build/wheel/*.whl
	cd build/wheel-venv && bin/python -m seekernel info

$(VENV)/.created:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"seekernel needs Python >= 3.10, {sys.executable} is {v.major}.{v.minor}: set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.packages: $(VENV)/.created constraints.txt
	$(PIP) torch==2.13.0 "setuptools>=77" wheel ninja pybind11
	touch $@

$(VENV)/.installed: $(VENV)/.packages setup.py pyproject.toml $(NATIVE)
	$(PIP) --no-build-isolation -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --no-build-isolation -e '.[test,lint,plot]'
	touch $@

clean:
	rm -rf build $(VENV)
