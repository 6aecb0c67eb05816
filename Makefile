# Every target first makes .venv when it is missing or older than the lock. Needs Linux, make, and Python 3.11 to 3.13.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
# `make setup TORCH=system` uses the torch and torchvision of PYTHON, such as a container's or a build without CUDA.
TORCH ?= lock
BIN := .venv/bin
READY := .venv/.ready
RECIPE ?= demo

.PHONY: setup demo test test-slow chaos chaos-nodes fuzz lint format bench bench-% lock bundle pin audit loc clean

setup: $(READY)

$(READY): requirements-dev.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: this needs Python 3.11, 3.12 or 3.13; install one, or say make PYTHON=/path/to/python3.11"; exit 2; }
	@test "$(TORCH)" = lock || $(PYTHON) -c "import torch, torchvision; assert tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 11)" 2>/dev/null || \
	  { echo "make: $(PYTHON) has no torch from 2.11 on with its torchvision; install both there, or leave out TORCH=$(TORCH)"; exit 2; }
	@echo "Setting up .venv with $(PYTHON): about $(if $(filter lock,$(TORCH)),7,2) GB, a few minutes, once."
	$(PYTHON) -m venv .venv
	@cp requirements-dev.lock .venv/requirements.lock
	@test "$(TORCH)" = lock || awk '/^[a-z]/ {keep = !/^(torch|torchvision|triton|nvidia-[^=]*|cuda-[^=]*)==/} keep' \
	  requirements-dev.lock > .venv/requirements.lock
	@sed -E '/^ *--hash/d; s/ *\\$$//' .venv/requirements.lock > .venv/names.txt
	@if [ -d wheels ]; then from="--no-index --find-links wheels -r .venv/names.txt"; else from="--require-hashes -r .venv/requirements.lock"; fi; \
	  echo "pip install $$from"; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps $$from  # wheels/ is of a bundle
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@test "$(TORCH)" = lock || $(PYTHON) -c "import torch; print(torch.__file__.rsplit('/', 2)[0])" > \
	  $$($(BIN)/python -c "import site; print(site.getsitepackages()[0])")/torch_of_system.pth  # behind the packages here
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true  # on all cores, where pip uses one; some packages hold files that are no Python 3
	@touch $@

demo: $(READY)  ## the whole pipeline at small scale, then the report
	$(BIN)/mav run $(RECIPE)
	$(BIN)/mav report $(RECIPE)

test: $(READY)  ## the default tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

chaos: $(READY)  ## everything is killed and nothing is lost: table, and build/chaos.json; half an hour
	$(BIN)/python tests/chaos/in_process.py
	$(BIN)/python tests/chaos/chaos.py

chaos-nodes: $(READY)  ## a node killed and one added while three workers train from a bucket: figures, and build/chaos-nodes.json
	$(BIN)/python tests/chaos/nodes.py

fuzz: $(READY)  ## more than a thousand hostile inputs for the parsers of outside bytes: table, and build/fuzz.json; two minutes
	$(BIN)/python tests/fuzz/fuzz.py

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n 2 --dist loadfile --no-loadscope-reorder --durations=10

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## every benchmark; results in build/bench/
	@for b in tests/benchmarks/bench_*.py; do $(BIN)/python $$b || exit 1; done

bench-%: $(READY)
	$(BIN)/python tests/benchmarks/bench_$*.py

LOCK := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet
lock:  ## resolve again; versions and hashes only, no address of an index
	@test -x $(BIN)/uv || $(MAKE) setup
	$(LOCK) --output-file requirements.lock
	$(LOCK) --extra dev --constraint requirements.lock --output-file requirements-dev.lock

BUNDLE := build/bundle/make-a-video
bundle: $(READY)  ## the last commit and the lock's wheels in build/bundle.tar, for a machine without a network
	rm -rf build/bundle && mkdir -p $(BUNDLE)/wheels
	git archive HEAD | tar xf - -C $(BUNDLE)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest $(BUNDLE)/wheels \
	  --requirement $(BUNDLE)/requirements-dev.lock
	@for source in $$(ls $(BUNDLE)/wheels/*.tar.gz $(BUNDLE)/wheels/*.zip 2>/dev/null); do \
	  $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(BUNDLE)/wheels $$source && rm $$source || exit 1; done
	cd $(BUNDLE) && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > SHA256SUMS
	tar cf build/bundle.tar -C build/bundle make-a-video && rm -rf build/bundle
	@ls -lh build/bundle.tar

pin:  ## IMAGE and PREFECT_IMAGE, each by its digest, into all files of infra/ that name an image
	@for image in "$(IMAGE)" "$(PREFECT_IMAGE)"; do echo "$$image" | grep -Eq '^[^@ #&]+@sha256:[0-9a-f]{64}$$' || { \
	  echo "make: '$$image' is no NAME@sha256:DIGEST: say IMAGE=... and PREFECT_IMAGE=..., as infra/README.md shows"; exit 2; }; done
	sed -i -E 's#registry\.example\.com/make-a-video:latest#$(IMAGE)#; s#: prefecthq/prefect:[a-z0-9.-]+#: $(PREFECT_IMAGE)#' \
	  infra/kubernetes/*.yaml infra/kubernetes/*.json infra/ray/cluster.yaml

audit: $(READY)  ## known vulnerabilities of what is locked; asks a public database, so not part of any test
	@$(PYTHON) -m venv build/audit && build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit || \
	  { echo "make: audit needs a network: its database of vulnerabilities is public"; exit 2; }
	build/audit/bin/pip-audit --require-hashes --disable-pip --requirement requirements.lock

loc:  ## lines of Python: the program's, and the tests'
	@echo "program $$(git ls-files 'flows/*.py' 'filters/*.py' 'mav/*.py' | xargs cat | wc -l)"
	@echo "tests   $$(git ls-files 'tests/*.py' | xargs cat | wc -l)"

clean:
	rm -rf build runs .pytest_cache .mypy_cache .ruff_cache
