# Two commands: `make compare` sets everything up and prints a table, `make test` sets everything up and checks the code.
#
#   make compare MODEL=resnet50 BACKENDS=all ARGS="--launches 3"
#   make test

PYTHON   ?= python3
VENV     ?= .venv
MODEL    ?= resnet50
BACKENDS ?= all
ARGS     ?=
SUITES   ?= micro vision nlp speech diffusion
WORK     := $(CURDIR)/results/reference
# Processes that tests run in; each takes up to 3 GB.
JOBS     ?= 2

# The GPU packages where an NVIDIA driver answers, the CPU packages elsewhere.
KIND     ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
OTHER    := $(if $(filter gpu,$(KIND)),cpu,gpu)
PIP      := $(VENV)/bin/python -m pip --disable-pip-version-check
SETUP    := setup.cfg pyproject.toml constraints.txt

.PHONY: compare test reference setup check-system clean
.DEFAULT_GOAL := compare

compare: $(VENV)/.installed-all-$(KIND)
	$(VENV)/bin/harness compare --model $(MODEL) --backends $(BACKENDS) $(ARGS)

test: $(VENV)/.installed-all-$(KIND),dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder $(ARGS)

setup: $(VENV)/.installed-all-$(KIND)

# The stamp is named after the extras. onnxruntime and onnxruntime-gpu cannot share an environment: one that was made
# before the driver appeared is made anew, and where another package brought the build for the CPU, which overwrites files
# of the other, that one is installed again.
$(VENV)/.installed-%: $(SETUP) | check-system
	if ls $(VENV)/.installed-all-$(OTHER)* >/dev/null 2>&1; then rm -rf $(VENV); fi
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[$*]'
	if test $(KIND) = gpu && $(PIP) show --quiet onnxruntime 2>/dev/null; then \
	  $(PIP) uninstall --quiet --yes onnxruntime onnxruntime-gpu && \
	  $(PIP) install --quiet --constraint constraints.txt --no-deps onnxruntime-gpu; fi
	touch $@ $(VENV)/.installed-all-$(KIND)

check-system:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing; run: sudo apt-get install python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "error: $$($(PYTHON) --version) will not do; choose Python 3.10 to 3.13 with: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: the venv module is missing; run: sudo apt-get install python3-venv" >&2; exit 1; }
	@command -v g++ >/dev/null || { echo "error: g++ is missing, torch.compile needs it; run: sudo apt-get install g++" >&2; exit 1; }

# Every reference model in eager and ONNX Runtime, suite by suite: over an hour on two quiet cores. Exports and engines of
# a suite take up to 40 GB; they are deleted before the next one starts.
reference: $(VENV)/.installed-all-$(KIND)
	mkdir -p docs/reference $(WORK)
	for suite in $(SUITES); do \
	  HARNESS_CACHE=$(WORK)/cache $(VENV)/bin/harness compare --suite $$suite --backends eager,onnxruntime \
	    --launches 3 --budget 25 --input-sets 1 --timeout 3000 --out $(WORK)/results --format markdown $(ARGS) \
	    > $(WORK)/$$suite.md && mv $(WORK)/$$suite.md docs/reference/$$suite.md || exit 1; \
	  rm -rf $(WORK)/cache; \
	done

clean:
	rm -rf $(VENV)
