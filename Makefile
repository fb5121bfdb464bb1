# make demo: train on faces and sample from the model.
# make pod-demo: the same as one run of two processes.
# make test: run the quick tests.
# make test-slow: run the tests that train models, draw many samples, or start and kill processes.
# make mutants: break the formulas of the core one by one and count how many the tests catch (about 20 minutes on two
#   cores).
# make lint: run ruff and pyright.
# make docs: build the documentation site into site/.
# make docs-serve: show it at http://localhost:8000, and build it again whenever a page changes.
# make notebooks: run the scripts of docs/notebooks and write their outputs into the notebooks beside them (half an hour
#   on one core).
# Targets set up .venv on first use. PYTHON chooses the interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
RUN    := runs/demo

.PHONY: demo pod-demo test test-slow mutants lint docs docs-serve notebooks clean

# On a CPU every step takes fresh memory from the kernel, and huge pages halve the time that this costs. The SDE helps
# because the network has only trained for minutes.
SDE    := --solver=renoise_2m --steps=50
demo: $(VENV)/ready
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(PY) train.py --config=configs/avatars_demo.py --workdir=$(RUN)
	$(PY) sample.py --workdir=$(RUN) --cond="hat=red,glasses=dark" --cond="hat=none,hair_color=green,mouth=happy" \
	  --cond="" --gamma=1,2,4 --num=9 $(SDE) --batch_size=27 --out=$(RUN)/guided
	$(PY) sample.py --workdir=$(RUN) --cond="hat=blue" --gamma=2 --num=36 $(SDE) --out=$(RUN)/hats
	$(PY) sample.py --workdir=$(RUN) --cond="hat=blue" --negative="glasses=dark" --negative="glasses=light" \
	  --gamma=2 --gamma_negative=1.5 --num=36 $(SDE) --out=$(RUN)/hats_without_glasses
	@echo
	@echo "Pictures:"
	@echo "  $(RUN)/guided/grid.png                 three conditions, guidance scale 1, 2 and 4"
	@echo "  $(RUN)/hats/grid.png                   blue hats"
	@echo "  $(RUN)/hats_without_glasses/grid.png   the same noise, guided away from glasses"
	@echo "  $(RUN)/previews/                       the model during training"

# A small pod: two processes with four virtual devices each. The first run replicates the state on all devices; the
# second resumes it, as after a preemption, with the state split over all devices.
POD := $(PY) examples/launch.py --processes=2 --devices=4
pod-demo: $(VENV)/ready
	$(POD) train.py --config=configs/avatars.py --workdir=runs/pod --config.network.width=256 --config.steps=300 --stop_after=150
	$(POD) train.py --config=configs/avatars.py --workdir=runs/pod --config.network.width=256 --config.steps=300 \
	  --config.layout.name=fsdp
	$(POD) sample.py --workdir=runs/pod --cond="hat=red" --num=36 --solver=ab2
	@echo "Trained and sampled by two processes: runs/pod/samples/grid.png"

TESTS := $(PY) -m pytest --numprocesses=auto --maxprocesses=4
test: $(VENV)/ready
	FLOWGUIDE_TESTS=quick $(TESTS) --dist=loadfile -m "not slow and not thorough"

test-slow: $(VENV)/ready
	FLOWGUIDE_TESTS=quick $(TESTS) --dist=loadfile -m "thorough and not slow"
	$(TESTS) --dist=worksteal -m slow

mutants: $(VENV)/ready
	$(PY) tools/mutate.py

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(PY)

# Without Material's news. With --quiet, --strict would see no warnings.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs
docs: $(VENV)/ready
	$(MKDOCS) build --strict
	@echo "The documentation is in site/index.html; make docs-serve has search too"

docs-serve: $(VENV)/ready
	$(MKDOCS) serve --livereload

notebooks: $(VENV)/ready
	$(PY) tools/notebooks.py

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --upgrade --quiet pip
	$(PY) -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs site .pytest_cache .ruff_cache
