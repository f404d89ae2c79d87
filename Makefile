# Every target sets up what it needs; the only thing to have is Python 3.10 to 3.13 (another one: make PYTHON=python3.12 ...).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_EPISODES ?= 3
DEMO_DUEL ?= 5
DEMO_OBJECT ?= --task 0 --task 3 --episodes 2
DEMO_LONG ?= --task 0 --task 2 --task 6
GATE ?= pi0 openvla reconvla diffusion_policy
PYTHONS ?= 3.10 3.13

.PHONY: help setup setup-tests demo gate test test-slow test-newest test-pythons check lock build clean
.DELETE_ON_ERROR:

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1  \2/p' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## install vla-bench, the simulators and the tools into .venv

$(VENV)/.installed: pyproject.toml scripts/setup.sh scripts/uv.sh requirements/lock.txt requirements/installer.txt requirements/torch.txt
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup.sh
	touch $@

demo: setup ## play policies on robosuite, CALVIN, LIBERO and the suite tiny, let two duel, rank all, write a web page
	$(BIN)/vla-bench run --policy oracle --suite robosuite --task Lift --episodes $(DEMO_EPISODES) --overwrite --out results/demo/oracle-lift
	$(BIN)/vla-bench run --policy oracle --suite calvin_d --episodes $(DEMO_EPISODES) --overwrite --out results/demo/oracle-calvin
	$(BIN)/vla-bench run --policy pi0 --suite tiny --episodes $(DEMO_EPISODES) --workers 2 --video failures --overwrite --out results/demo/pi0-tiny
	$(BIN)/vla-bench run --policy pi0 --suite libero_object $(DEMO_OBJECT) --workers 2 --overwrite --out results/demo/pi0-libero_object
	$(BIN)/vla-bench run --policy reconvla --suite libero_long $(DEMO_LONG) --episodes 1 --workers 2 --overwrite --out results/demo/reconvla-libero_long
	$(BIN)/vla-bench duel diffusion_policy reconvla --suite tiny --episodes $(DEMO_DUEL) --workers 2 --overwrite --out results/demo/duel || test $$? -eq 2
	$(BIN)/vla-bench leaderboard results/demo
	$(BIN)/vla-bench report results/demo --out reports/demo
	@echo "Open reports/demo/index.html."

gate: setup ## play the checkpoints that come along on the suite tiny and hold them against the committed baselines
	VENV="$(VENV)" sh scripts/gate.sh $(GATE)

setup-tests: $(VENV)/.tests-installed ## also install what the tests compare with and look at pages with

$(VENV)/.tests-installed: $(VENV)/.installed scripts/setup_tests.sh scripts/lerobot.txt
	VENV="$(VENV)" sh scripts/setup_tests.sh
	touch $@

test: setup-tests ## run the tests, those that need a simulator included
	$(BIN)/pytest -n auto --dist loadscope --no-loadscope-reorder --durations 25 -m "not slow"

test-slow: setup-tests ## run the tests that `make test` leaves out because they take long (PART=2/10: a tenth of them)
	$(BIN)/pytest -n auto --dist loadscope --no-loadscope-reorder --durations 25 -m slow $(if $(PART),--part $(PART))

test-newest: ## run what leans on other packages with the newest release of each that pyproject.toml allows
	PYTHON="$(PYTHON)" sh scripts/newest.sh

test-pythons: ## install the lock and play one episode of each policy on the oldest and the newest Python
	sh scripts/pythons.sh $(PYTHONS)

check: setup ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

lock: ## take the newest releases that pyproject.toml allows into requirements/
	PYTHON="$(PYTHON)" sh scripts/lock.sh

build: setup ## build wheel and sdist and try each in a clean environment
	VENV="$(VENV)" sh scripts/build.sh

clean: ## remove everything these targets made
	rm -rf $(VENV) $(VENV)-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache results/demo results/gate-* reports/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
