SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help venv check test test-all demo demo-down demo-gcp plan ask plan-score diagnosis diagnosis-score bench \
	bench-site gpu-check drill drill-quick lock dashboards pictures docs site clean bump

PYTHON := .venv/bin/python
LOCK := requirements/dev.txt

help: ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

venv: .venv/.locked ## Make the tools' virtual environment from the lock

.venv/.locked: $(LOCK) lab/bootstrap.sh
	@bash lab/bootstrap.sh $(LOCK)
	@touch $@

check: venv ## Linters and all tests that need no machine (9 min)
	@$(PYTHON) tests/suite.py check

test: check ## Everything about every role, on booted machines (ROLE=vllm, PLATFORM=debian13)
	@$(PYTHON) -m lab services up > /dev/null
	@$(PYTHON) tests/suite.py roles $(ROLE)

test-all: venv ## The long and rare: all platforms, upgrades, removals, long bad input, the host's Python, the quick drill
	@$(PYTHON) -m lab services up > /dev/null
	@$(PYTHON) tests/suite.py long $(ROLE)

gpu-check: venv ## On a host of yours with a GPU: converge, reboot and test it (HOST=user@address, VARIABLES=FILE)
	@test -n "$(HOST)" || { echo "Name the host: make gpu-check HOST=user@address" >&2; exit 2; }
	@$(PYTHON) tests/gpu_check.py $(HOST) $(if $(VARIABLES),--variables $(VARIABLES))

demo: venv ## Boot a machine, converge it, show it serving (ENGINES=two: vLLM and llama.cpp behind one door)
	@$(PYTHON) -m lab demo

demo-down: venv ## Take the demo away
	@$(PYTHON) -m lab demo-down

demo-gcp: venv ## Provision on a loopback Compute API, serve, stop, start, decommission
	@$(PYTHON) -m lab demo-gcp

plan: venv ## Show the GPU memory plan of the production example on an L4
	@.venv/bin/ansible-playbook -i inventories/production playbooks/plan.yml \
		-e '{"gpu_memory_plan_gpu": {"name": "L4", "total_mib": 23034}}' \
		-e gpu_memory_plan_config=$(CURDIR)/data/gpu_memory/exaone-3.5-2.4b-instruct.json

ask: ## The same without Ansible (ARGUMENTS="--gpu L4 --model … --version …", --help lists them)
	@python3 -m plugins.module_utils.gpu.memory $(or $(ARGUMENTS),--help)

plan-score: venv ## Score the planner against measured starts (DATA=DIR)
	@$(PYTHON) tests/plan_score.py $(DATA)

diagnosis: venv ## Say what a saved log, `docker inspect` or `kubectl describe` shows (FILE=log)
	@test -n "$(FILE)" || { echo "Name the file: make diagnosis FILE=log" >&2; exit 2; }
	@$(PYTHON) -m plugins.module_utils.diagnosis $(FILE) || test $$? -eq 1

diagnosis-score: venv ## Score the diagnosis against failures whose cause is known (DATA=FILE)
	@$(PYTHON) tests/diagnosis_score.py $(DATA)

bump: venv ## Add a release to a program's checksum table (PROGRAM=promtail VERSION=3.5.5, MIRROR=http://…)
	@test -n "$(PROGRAM)" -a -n "$(VERSION)" || { echo "Name both: make bump PROGRAM=promtail VERSION=3.5.5" >&2; exit 2; }
	@$(PYTHON) -m lab.bump "$(PROGRAM)" "$(VERSION)" $(if $(MIRROR),--mirror "$(MIRROR)")

drill: venv ## Break servers in every known way and print the results (SEED=7 repeats the random choices, BED=fleet is one part)
	@$(PYTHON) -m lab drill $(if $(SEED),--seed $(SEED)) $(if $(BED),--bed $(BED))

drill-quick: venv ## The part of the drill that fits into eight minutes
	@$(PYTHON) -m lab drill --quick $(if $(SEED),--seed $(SEED))

bench: venv ## Time fresh and repeated runs beside the floor, site.yml beside pyinfra, ai-server beside nginx
	@$(PYTHON) -m lab bench
	@$(PYTHON) -m lab bench-relay --write
	@$(PYTHON) -m lab bench-site --write

bench-site: venv ## Time a run of site.yml without changes on one and on ten hosts, beside pyinfra (10 min)
	@$(PYTHON) -m lab bench-site --write

dashboards: venv ## Write the dashboards for Grafana and VictoriaMetrics' UI from their source
	@$(PYTHON) -m dashboards.generate

pictures: venv ## Look at the dashboards in a headless browser and write docs/pictures (12 min; URL=http://… of a store)
	@$(PYTHON) -m lab pictures $(or $(URL),--write docs/pictures)

docs: venv ## Write the tables of the role pages from the argument specs
	@$(PYTHON) docs/generate.py

site: venv ## Build the documentation as a site (open .lab/site/index.html)
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet && echo .lab/site/index.html

lock: venv ## Compile the lock files anew
	@bash requirements/compile.sh

clean: venv ## Remove machines, images, downloads and builds of the laboratory
	@$(PYTHON) -m lab clean
