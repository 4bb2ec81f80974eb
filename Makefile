# Every target works from a fresh clone by itself: the virtual environment is made when absent or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two states of the environment: cliploc alone, and with all that tests and checks need.
RUNS := $(VENV)/.runs
READY := $(VENV)/.ready
# Packages whose maps tests compare ours with. They pin an old open_clip, NumPy and a second OpenCV, but run with ours.
PEERS := legrad_torch==1.1 gem_torch==1.0.1 captum==0.9.0
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo test test-kernels test-lowest test-ray test-web lint types imports bench bench-quick check mini-card mini-vit-card docs notebooks prose release-check clean

setup: $(READY)

$(READY): pyproject.toml Makefile
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing cliploc and its development tools into $(VENV) (a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PEERS)
	@touch $(RUNS) $(READY)

demo: $(RUNS)
	$(BIN)/cliploc demo --out demo-out

$(RUNS): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing cliploc into $(VENV) (a minute or two, most of it torch)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $(RUNS)

# Bytecode is kept, whatever the environment says: each worker compiles all tests otherwise, and each command that a test
# starts all of cliploc.
test: $(READY)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not ray'

# The kernels of older processors, as far as this one has them: results of other shapes, batches and numbers of names are
# compared, which need not agree to the bit. Only the tests that compare: all would take several times as long. Where
# there is no AVX-512, those of AVX2 are what `make test` runs.
KERNEL_TESTS := tests/methods tests/refine tests/towers tests/find/teaching tests/find/test_learnt.py tests/test_localizer.py tests/find/test_running.py
COMPARING := batch or prompts or names or equation or alone or apart or at_once or same or depend or twice or one_by_one or hosts \
	or are_timms or are_open_clips or reproduced or calibrated or resumes

test-kernels: $(READY)
	! grep -qs avx512f /proc/cpuinfo || \
		MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
		$(BIN)/python -m pytest -n 2 --dist loadfile -p no:cacheprovider $(KERNEL_TESTS) -k '$(COMPARING)'
	MKL_ENABLE_INSTRUCTIONS=SSE4_2 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
		$(BIN)/python -m pytest -n 2 --dist loadfile -p no:cacheprovider $(KERNEL_TESTS) -k '$(COMPARING)'

# The lowest versions that pyproject.toml allows, in a virtual environment of their own: models, pictures, boxes, the
# command. Without starlette, kornia, Ray and transformers, whose own floors for torch and huggingface-hub are higher than ours.
LOWEST := .venv-lowest
LOWEST_TESTS := $(wildcard tests/test_*.py) tests/cli tests/towers tests/draw
NEEDS_KORNIA := --deselect tests/cli/test_cli.py::test_options_reach_the_localizer

test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile -p no:cacheprovider $(LOWEST_TESTS) $(NEEDS_KORNIA)

$(LOWEST)/.ready: pyproject.toml Makefile
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	@echo "installing the lowest versions into $(LOWEST) (some gigabytes: old releases of torch bring CUDA along)"
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[bench,test]'
	@touch $@

# Alone, as a cluster's nodes take both processors.
test-ray: $(READY)
	$(BIN)/python -m pytest -n 0 -m ray tests/runs/test_ray.py

# In a real browser; where there is none, a line says so. CLIPLOC_SCREENSHOTS=DIR leaves pictures of the pages in DIR:
# those of docs/web are drawn so.
test-web: $(READY)
	@tools/test_web.sh $(BIN)/python

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m bench

# Speed is not judged: that all benches run, and that our results are those of the packages beside us.
bench-quick: $(READY)
	$(BIN)/python -m bench --quick

mini-card: $(READY)
	$(BIN)/python tools/mini_card.py

mini-vit-card: $(READY)
	$(BIN)/python tools/mini_vit_card.py

# The site, in site/index.html. A link, a page or a name that is not there is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build  # --quiet would hide what --strict counts

# Runs the notebooks from beginning to end; they keep no outputs.
notebooks: $(VENV)/.docs
	$(BIN)/python -m pytest -n 2 -p no:cacheprovider --nbmake --nbmake-timeout=200 docs/notebooks

# How long the pages are (README, user pages, studies), and what a linter says of the English; to read, not a gate. A word
# has a letter or a digit, so bars and lines of tables count for nothing.
WORDS := tr -s '[:space:]' '\n' | grep -c '[[:alnum:]]'
prose: $(VENV)/.docs
	@for page in README.md $$(find docs -name '*.md' | sort); do echo "$$(cat $$page | $(WORDS)) $$page"; done
	@echo "$$(cat $$(find docs -name '*.md' -not -path 'docs/studies/*') | $(WORDS)) for users"
	@echo "$$(cat docs/studies/*.md | $(WORDS)) studies"
	-$(BIN)/proselint --config .proselintrc.json check README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs

$(VENV)/.docs: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs,release]'
	@touch $@

# The wheel and the source distribution as others get them, in dist/. QUICK=1 downloads nothing and takes a minute.
# EXTRAS=1 also installs each extra alone and uses it: some gigabytes, half an hour.
release-check: $(VENV)/.docs
	@tools/check_wheel.sh $(BIN)/python
	@test -z "$(EXTRAS)" || tools/check_extras.sh $(BIN)/python

check: lint types imports test

clean:
	rm -rf $(VENV) $(LOWEST) demo-out dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
