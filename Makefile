# Needs GNU make and Python 3.11 to 3.13, nothing else: the first target that needs it makes .venv.
#
#   make figures                       the default experiment, on this machine
#   make figures CONFIG=config/x.yaml  another experiment (an overlay of config.yaml)
#   make figures ARGS=--dry-run        more options for snakemake
#
# Written for GNU make 3.81, which macOS still ships.

PYTHON ?= python3
CORES ?= all
CONFIG ?=
ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# Snakemake calls papermill by name; `environment` looks for $(PYTHON) without us.
HOST_PATH := $(PATH)
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

OVERLAY = $(if $(CONFIG),--configfile "$(CONFIG)")
SNAKEMAKE = "$(BIN)/snakemake" $(ARGS) --cores $(CORES) --quiet host reason rules $(OVERLAY)
REPORT = "$(BIN)/snakemake" all write_report $(ARGS) --cores $(CORES) --quiet host reason rules $(OVERLAY)
PYTEST = "$(BIN)/python" -m pytest $(PYTEST_ARGS)
# A worker a core; a file is one worker's, which makes its fixtures once.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile
INSTALL_SLURM = "$(BIN)/python" tests/slurm/loopback_slurm.py install
INSTALL_BROWSER = "$(BIN)/python" tests/workflow/browser.py install
EXTRA := slow or cluster or browser
EXPERIMENT = $(shell sed -n 's/^experiment:[[:space:]]*\([A-Za-z0-9._-]*\).*/\1/p' "$(if $(CONFIG),$(CONFIG),config.yaml)")

.DEFAULT_GOAL := help
.PHONY: help figures quick cost report snakemake-report readme test test-slow test-slurm lint clean environment

help:
	@echo "make figures      run the default experiment and draw its figures (CONFIG=, CORES=, ARGS=)"
	@echo "make quick        the same on a tiny experiment with its report, in minutes"
	@echo "make cost         what it will take, before a byte is downloaded: jobs, time, memory, disk (CONFIG=)"
	@echo "make report       one HTML file: verdicts on claims, figures, audits, cost, and where it all comes from"
	@echo "make snakemake-report   Snakemake's own report: the graph, times and figures"
	@echo "make readme       put the verdicts of the default run into README.md"
	@echo "make test         the tests (PYTEST_ARGS=)"
	@echo "make test-slow    the tests that kill jobs, need SLURM, or take long"
	@echo "make test-slurm   the tests on a SLURM cluster of this one machine (root; installs Debian's packages)"
	@echo "make lint         ruff, snakefmt and snakemake's own linter"
	@echo "make clean        delete every result and the workflow's records (keeps .venv and downloads)"

figures: environment
	@$(SNAKEMAKE)

quick: CONFIG = config/smoke.yaml
quick: environment
	@$(REPORT)

# Not $(SNAKEMAKE), whose last options would take the target for one more value of theirs.
cost: environment
	@"$(BIN)/snakemake" cost $(ARGS) --cores 1 --quiet host progress reason rules $(OVERLAY)

report: environment
	@$(REPORT)
	@echo "results/$(EXPERIMENT)/report.html"

snakemake-report: figures
	@$(SNAKEMAKE) --report "results/$(EXPERIMENT)/snakemake-report.html"
	@echo "results/$(EXPERIMENT)/snakemake-report.html"

readme: environment
	@"$(BIN)/snakemake" render_readme $(ARGS) --cores $(CORES) --quiet host reason rules $(OVERLAY)

test: environment
	@$(PYTEST) $(PARALLEL) -m "not ($(EXTRA))"

# In the order of tests/conftest.py, for files with few tests can be the longest. pytest's exit status 5 means that no test was
# selected. Where SLURM or a browser cannot be installed, its tests say why they skip.
test-slow: environment
	@$(INSTALL_SLURM) || true
	@$(INSTALL_BROWSER) || true
	@$(PYTEST) $(PARALLEL) --no-loadscope-reorder -m "$(EXTRA)" || { status=$$?; test $$status -eq 5 || exit $$status; }

test-slurm: environment
	@$(INSTALL_SLURM)
	@$(PYTEST) -m cluster

lint: environment
	@"$(BIN)/ruff" check .
	@"$(BIN)/ruff" format --check .
	@"$(BIN)/snakefmt" --check Snakefile workflow/rules
	@"$(BIN)/snakemake" --lint

clean:
	@find results -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	@rm -rf .snakemake logs

# The stamp holds the lock's hash and the folder that .venv was made in (its scripts hold that path, too). It is
# written last, so an interrupted installation is made anew.
environment: PATH := $(HOST_PATH)
environment:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "make: there is no $(PYTHON); counterprobe needs Python 3.11, 3.12 or 3.13: make figures PYTHON=python3.12" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
	  echo "make: $(PYTHON) is $$("$(PYTHON)" --version 2>&1); counterprobe needs 3.11, 3.12 or 3.13:" \
	    "make figures PYTHON=python3.12" >&2; \
	  exit 1; }
	@wanted="$$("$(PYTHON)" -c 'import hashlib; print(hashlib.sha256(open("requirements.lock", "rb").read()).hexdigest())') $(CURDIR)"; \
	if [ "$$(cat $(VENV)/.installed 2>/dev/null)" = "$$wanted" ]; then exit 0; fi; \
	set -e; \
	echo "making $(VENV) (once; minutes)"; \
	"$(PYTHON)" -m venv --clear $(VENV) || { \
	  echo "make: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }; \
	echo "  torch (several GB where pip takes the CUDA build)"; \
	"$(BIN)/python" -m pip install --quiet --quiet -r envs/torch.txt; \
	echo "  everything else"; \
	"$(BIN)/python" -m pip install --quiet --quiet --no-deps --require-hashes -r requirements.lock; \
	"$(BIN)/python" -m pip check >$(VENV)/pip-check.txt || { cat $(VENV)/pip-check.txt >&2; exit 1; }; \
	echo "$$wanted" >$(VENV)/.installed
