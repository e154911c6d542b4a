# Each command sets up what it needs in .venv, on a machine with Python 3.11 to 3.13 and make; nothing goes elsewhere.
#   make study    the main job: four methods, three seeds, drawn faces; about two minutes on two cores
#   make test     everything CI runs
#   make lab      JupyterLab on notebooks/00_start_here.ipynb
#   make table1   Table 1 with a verdict on each claim: drawn faces, minutes; or make table1 DATA=fer2013, a packed set
#   make site     the notebooks as pages that open without a network, in build/site
#   make stress   the tests at full length: 50 kills, 100,000 steps, 200 runs, each test of processes 50 times; resumable
#   make benchmark  what the live view costs, how fast images are packed, and on a GPU how fast training runs
PYTHON ?= python3
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count() or 1)')
DATA ?=
VENV := .venv
PY := $(VENV)/bin/python
PACKED := $(or $(FER_PACKED),packed)
QUICK := $(PACKED)/synthetic-quick/manifest.json
# Python compiles what is imported, when it is: pip would compile all 15,000 files, a minute or more. Images for
# containers often forbid that, and then each process compiles anew: 5 s more to start.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: help study test lab table1 site stress benchmark notebooks readme-results clean
help:
	@sed -n '2,8s/^# *//p' Makefile

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "make: $(PYTHON) is not Python 3.11 to 3.13; name one that is: make study PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml | $(PY)
	@echo "installing (PyTorch is large: a few minutes the first time)"
	$(PIP) -e .
	@touch $@

$(VENV)/.test $(VENV)/.lab: $(VENV)/.base
	$(PIP) -e '.[$(patsubst .%,%,$(notdir $@))]'
	@touch $@

# the oldest ipykernel that pyproject.toml admits, beside the newest: the live view's tests run with both
$(VENV)/ipykernel-oldest: pyproject.toml | $(VENV)/.test
	rm -rf $@
	$(PIP) --no-deps --target $@ 'ipykernel==7.4.0'
	@touch $@

# drawn again when the drawing changes: the same code draws the same content
$(QUICK): data_prep/synthetic.py data_prep/faces.py | $(VENV)/.base
	$(PY) -m data_prep synthetic --preset quick --out $(PACKED)/synthetic-quick --overwrite
	@touch $@

study: $(VENV)/.base $(QUICK)
	$(PY) -m fer_lib.batch notebooks/studies/quick.yml --workers $(WORKERS)

# Without DATA the quick size on drawn faces; fer2013 at the standard size, affectnet at the paper's: claims are judged on
# these. Any other packed set: a name below packed/, or a path. Finished runs are skipped, and each ends in 09_table1.
TABLE1 = $(if $(DATA),$(or $(TABLE1_$(DATA)),--name table1_$(notdir $(DATA)) --set data=$(DATA)),--size quick)
TABLE1_fer2013 = --size standard
TABLE1_affectnet = --size paper
table1: $(VENV)/.base $(if $(DATA),,$(QUICK))
	$(PY) -m fer_lib.batch notebooks/studies/table1.yml $(TABLE1) --workers $(WORKERS)

lab: $(VENV)/.lab $(QUICK)
	$(PY) -m jupyter lab --ServerApp.ip=127.0.0.1 notebooks/00_start_here.ipynb

site: $(VENV)/.lab
	$(PY) -m fer_lib.site --out build/site

# Library and commands (tests marked long are left to make stress), and nbval, which runs each notebook anew and compares
# its checked outputs with the stored ones; then, alone on the machine, what measures how soon the live view acts in a
# browser. Two workers more than cores: many tests wait for a process or a page.
test: $(VENV)/.test $(VENV)/ipykernel-oldest $(QUICK)
	$(PY) -m ruff check .
	OMP_NUM_THREADS=1 FER_RUNS=$$(mktemp -d) JUPYTER_PREFER_ENV_PATH=1 $(PY) -m pytest -q -n $$(($(WORKERS) + 2)) \
	  --dist loadfile --no-loadscope-reorder -m "not alone and not long" --nbval-lax --nbval-current-env --nbval-cell-timeout 300 notebooks tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m "alone and not long" $(wildcard tests/test_browser*.py)

# Hours. Goes on where it was stopped; stress.json says what was run, how long it took and how it ended.
stress: $(VENV)/.test $(VENV)/ipykernel-oldest $(QUICK)
	OMP_NUM_THREADS=1 $(PY) tests/stress.py

benchmark: $(VENV)/.test $(QUICK)
	OMP_NUM_THREADS=1 $(PY) tests/benchmark_live.py --browser
	OMP_NUM_THREADS=1 $(PY) tests/benchmark_data.py
	$(PY) -m fer_lib.benchmark_speed --out speed.json

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis

# For maintainers: run the notebooks and store their outputs, which `make test` then compares.
notebooks: $(VENV)/.test $(QUICK)
	FER_RUNS=$$(mktemp -d) JUPYTER_PREFER_ENV_PATH=1 $(VENV)/bin/jupyter-nbconvert --execute --inplace --to notebook \
	  --ClearMetadataPreprocessor.enabled=True --ClearMetadataPreprocessor.clear_notebook_metadata=False \
	  --ClearMetadataPreprocessor.preserve_cell_metadata_mask=tags \
	  --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

# For maintainers: README's results from notebooks/results, after records were added.
readme-results: $(VENV)/.base
	$(PY) -m fer_lib.readme_results
