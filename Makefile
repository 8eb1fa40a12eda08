# Needs python3 (3.11 to 3.13) and a network; everything else goes into .venv
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q --no-compile -c constraints.txt
# threads that wait give way soon: free on a quiet machine, many times faster on a busy one
export GOMP_SPINCOUNT ?= 10000
SHELL := /bin/bash
TUTORIALS = $(sort $(wildcard nbs/0*.ipynb nbs/[1-8]*/*.ipynb nbs/95_findings/*.ipynb)) nbs/90_experiments/quickstart.ipynb nbs/index.ipynb

STUDIES = $(filter-out quickstart,$(basename $(notdir $(wildcard nbs/90_experiments/*.ipynb))))

help: ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "python 3.11 to 3.13 is needed, this is %d.%d; try make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv .venv || (echo 'on Debian and Ubuntu: apt-get install python3-venv'; rm -rf .venv; exit 1)

.venv/.runs: .venv/bin/python constraints.txt settings.ini setup.py
	$(PIP) -e '.[runs]'
	@touch $@

.venv/.dev: .venv/.runs
	$(PIP) -e '.[dev]'
	@touch $@

demo: .venv/.runs ## train a beta-TCVAE on sprites, measure it, draw it (about 4 minutes on 2 cores)
	$(BIN)/disent-nb run quickstart --preset quick

test: .venv/.dev ## everything that CI runs
	$(BIN)/python tests/in_sync.py
	$(BIN)/ruff format --check -q nbs tests setup.py
	$(BIN)/ruff check -q nbs tests setup.py
	$(BIN)/pyright
	cd nbs && export OMP_NUM_THREADS=1 && time ../$(BIN)/nbdev_test --n_workers 2 --do_print
	$(BIN)/python -m pytest -n 2

quick: .venv/.dev ## in sync, formatted, and the tests of notebooks and contract (under a minute)
	$(BIN)/python tests/in_sync.py
	$(BIN)/ruff format --check -q nbs tests setup.py
	$(BIN)/ruff check -q nbs tests setup.py
	$(BIN)/python -m pytest -n 2 -x tests/test_notebooks.py tests/test_contract.py -k 'not study and not tooling'

# each line is another arithmetic: rounding differs, and with it every training
ARITHMETICS = "" "ONEDNN_MAX_CPU_ISA=AVX2" "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41" "OMP_NUM_THREADS=1"

portable: .venv/.dev ## the notebooks and tests that look at trainings, under four arithmetics (over an hour)
	@for settings in $(ARITHMETICS); do echo "== $${settings:-as it is}"; \
		(cd nbs && env $$settings ../$(BIN)/nbdev_test --n_workers 1 --path 30_train && env $$settings ../$(BIN)/nbdev_test --n_workers 1 --path 40_methods) \
		&& env $$settings $(BIN)/python -m pytest -q --durations=0 tests/test_methods.py tests/test_weak.py tests/test_contract.py \
		tests/test_runs.py tests/test_downstream.py tests/test_prob.py || exit 1; done

chaos: .venv/.dev ## kill runs, sweeps and studies 200 times at random moments (half an hour)
	OMP_NUM_THREADS=1 CHAOS_KILLS=200 $(BIN)/python -m pytest -n 2 tests/test_chaos.py

format: .venv/.dev ## format the code of notebooks and tests
	$(BIN)/ruff format nbs tests setup.py

lab: .venv/.dev ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

notebooks: .venv/.dev ## execute the tutorials and store their outputs
	@for n in $(TUTORIALS); do echo $$n; TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --log-level=ERROR --to notebook --execute --inplace $$n || exit 1; done
	$(BIN)/nbdev_clean

export: .venv/.dev ## write the modules from the notebooks
	$(BIN)/nbdev_export && $(BIN)/nbdev_clean

readme: .venv/.dev ## make README.md from nbs/index.ipynb
	$(BIN)/jupyter nbconvert --log-level=ERROR --to markdown --output-dir . --output README --NbConvertApp.output_files_dir=nbs/images \
		--TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags="{'hide_input'}" nbs/index.ipynb
	@$(BIN)/python -c "import re; s = open('README.md').read(); s = re.sub(r'\]\((?=\d\d_)', '](nbs/', s).replace('](../', ']('); \
		s = re.sub(r'\`{3}\n(?=import|from)', '\`\`\`python\n', s).replace('![png]', '![traversals and mutual information]'); open('README.md', 'w').write(s)"

reports: .venv/.dev ## run the studies with their cpu presets and store what they show in their notebooks (hours)
	@for n in $(STUDIES); do echo $$n; $(BIN)/python -c "from disent_nb.runs.run import *; store_report(run('$$n', preset='cpu'), find_experiment('$$n'))" || exit 1; done
	$(BIN)/nbdev_clean

bench: .venv/.runs ## speed and memory, as ratios measured side by side
	$(BIN)/python tests/bench/train.py
	$(BIN)/python tests/bench/data.py
	$(BIN)/python tests/bench/metrics.py
	$(BIN)/python tests/bench/dci.py


.PHONY: help demo test quick portable chaos format lab notebooks export readme reports bench
.DEFAULT_GOAL := help
