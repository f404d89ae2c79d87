# Every target sets up what it needs; the only thing to have is Python 3.10 to 3.13 (another one: make PYTHON=python3.12 ...).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_EPISODES ?= 3

.PHONY: help setup demo gate test check build clean
.DELETE_ON_ERROR:

help: ## say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1  \2/p' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## install vla-bench, the simulators and the tools into .venv

$(VENV)/.installed: pyproject.toml scripts/setup.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/setup.sh
	touch $@

demo: setup ## play policies on robosuite, CALVIN, LIBERO and the suite tiny, let two duel, rank all, write a web page
	$(BIN)/vla-bench run --policy oracle --suite robosuite --task Lift --episodes $(DEMO_EPISODES) --overwrite --out results/demo/oracle-lift
	$(BIN)/vla-bench run --policy oracle --suite calvin_d --episodes $(DEMO_EPISODES) --overwrite --out results/demo/oracle-calvin
	$(BIN)/vla-bench run --policy pi0 --suite tiny --episodes $(DEMO_EPISODES) --workers 2 --video failures --overwrite --out results/demo/pi0-tiny
	$(BIN)/vla-bench run --policy pi0 --suite libero_object --task 0 --task 3 --episodes 2 --workers 2 --overwrite --out results/demo/pi0-libero_object
	$(BIN)/vla-bench run --policy reconvla --suite libero_long --task 0 --task 2 --task 6 --episodes 1 --workers 2 --overwrite --out results/demo/reconvla-libero_long
	$(BIN)/vla-bench duel diffusion_policy reconvla --suite tiny --episodes 5 --workers 2 --overwrite --out results/demo/duel || test $$? -eq 2
	$(BIN)/vla-bench leaderboard results/demo
	$(BIN)/vla-bench report results/demo --out reports/demo
	@echo "Open reports/demo/index.html."

gate: setup ## play the checkpoints that come along on the suite tiny and hold them against the committed baselines
	VENV="$(VENV)" sh scripts/gate.sh

test: setup ## run all tests, those that need a simulator included
	$(BIN)/pytest -n auto --dist loadscope

check: setup ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

build: setup ## build wheel and sdist and try each in a clean environment
	VENV="$(VENV)" sh scripts/build.sh

clean: ## remove everything these targets made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache results/demo results/gate-* reports/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
