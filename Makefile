# make test: sets up what is missing, then the tests. See README.md.
PYTHON = $$(scripts/setup.sh dev)
# What make test-long runs on the other base; make test-all runs everything on both.
SHORT = tests/engine/test_compat.py tests/engine/test_parallel.py tests/engine/test_defects.py \
	tests/engine/test_flat_gradients.py
# Four processes for two cores: a test waits for others half of its time. tests/conftest.py has the
# order.
PARALLEL = -n 4
# Of few files, which keep the processes of tests/support/ranks.py busy: each one more takes five
# seconds of processor time to start.
PARALLEL_SHORT = -n 2
LINT = "$$python" -m ruff check . && "$$python" -m ruff format --check . && \
	if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then "$$python" -m mypy; \
	else echo "mypy is not run: it needs Python 3.11 or newer"; fi
# Hundreds of processes are started, each of which would compile every file that it imports.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: test test-long test-unit test-all test-matrix test-ray test-wheel test-report test-prediction bench bench-gpu fuzz kills docs lint coverage dist series

test:
	@python=$(PYTHON) && $(LINT) && "$$python" -m pytest $(PARALLEL) -m "not slow and not long"

# Further cases and the other base, of some minutes: .ci/run has them beside make test.
test-long:
	@python=$(PYTHON) && "$$python" -m pytest $(PARALLEL) -m "long and not slow" && \
	DSMOE_BASE=0.5.4 "$$python" -m pytest -q $(PARALLEL_SHORT) -m "not slow and not long" $(SHORT)

test-all: lint
	@python=$(PYTHON) && scripts/test-ray.sh "$$python" && "$$python" -m pytest $(PARALLEL) && \
	DSMOE_BASE=0.5.4 "$$python" -m pytest $(PARALLEL)

test-matrix:
	@python=$(PYTHON) && "$$python" scripts/matrix.py

# The Ray source of get_hostfiles.py against a real Ray, in an environment of its own.
test-ray:
	@python=$(PYTHON) && scripts/test-ray.sh "$$python" -m "not slow"

# The README's commands with the installed wheel, as a user who is not root; needs pip's network.
test-wheel:
	@python=$(PYTHON) && "$$python" -m pytest -q tests/system/install/test_wheel_as_user.py

# The report in Chromium: its width, and what axe-core of npm finds.
test-report:
	@python=$(PYTHON) && scripts/test-report.sh "$$python"

# Predicted against measured seconds of two cores, after dsmoe calibrate: on a quiet machine.
test-prediction:
	@python=$(PYTHON) && "$$python" -m pytest -q -m slow -k this_cpu tests/system/benchmark/test_predict.py

# Odd arguments, variables and files through every command (docs/reference/reliability.md):
# make fuzz SECONDS=600
SECONDS ?= 3600
fuzz:
	@python=$(PYTHON) && "$$python" tests/system/fuzz/campaign.py --seconds $(SECONDS)

# SIGKILL and Ctrl-C at random moments: make kills KILLS="--patch 50 --append 50 --interrupts 20"
KILLS ?=
kills:
	@python=$(PYTHON) && "$$python" tests/system/fuzz/kills.py $(KILLS)

# The fast path against the reference path on this machine; the GPU cases (docs/guide/fast-path.md).
bench:
	@python=$(PYTHON) && PYTHONPATH="$(CURDIR)" "$$python" -m dsmoe bench

bench-gpu:
	@python=$(PYTHON) && scripts/bench-gpu.sh "$$python"

lint:
	@python=$(PYTHON) && $(LINT)

# The tests that need neither a DeepSpeed checkout nor process groups: under a minute.
test-unit:
	@python=$(PYTHON) && "$$python" -m pytest -q $(PARALLEL_SHORT) -m "not slow and not long" tests/unit

# Which lines of dsmoe/ the tests run, also in the processes that they start: htmlcov/index.html.
coverage:
	@python=$(PYTHON) && "$$python" -m coverage erase && \
	"$$python" -m pytest -q -m "not slow" --cov --cov-report=term --cov-report=html

# The wheel, in dist/.
dist:
	@python=$(PYTHON) && "$$python" -m pip wheel -q --no-deps -w dist .

# The site, in build/site: pages made from the code, their links and words checked, then mkdocs.
docs:
	@python=$$(scripts/setup.sh docs) && "$$python" scripts/make_reference.py && \
	"$$python" scripts/check_docs.py && \
	NO_MKDOCS_2_WARNING=1 "$$python" -m mkdocs build --strict --quiet && \
	echo "wrote build/site/index.html"

# After a change of patch/ or overlay/: renew both locks and carry the series over to 0.5.4
# (docs/reference/bases.md).
series:
	@python=$(PYTHON) && cd "$(CURDIR)" && \
	{ test -e build/DeepSpeed || "$$python" apply_patch.py build/DeepSpeed --from-release --no-apply; } && \
	{ test -e build/DeepSpeed-0.5.4 || \
	  "$$python" apply_patch.py build/DeepSpeed-0.5.4 --from-release --base 0.5.4 --no-apply; } && \
	"$$python" apply_patch.py build/DeepSpeed --lock && \
	"$$python" apply_patch.py build/DeepSpeed-0.5.4 --port-from build/DeepSpeed && \
	"$$python" apply_patch.py build/DeepSpeed && "$$python" apply_patch.py build/DeepSpeed-0.5.4
