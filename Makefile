# What a person types. PYTHON=... chooses the interpreter of a new .venv.
SHELL := bash
PORT ?= 5000
HOSTS ?= 2
ADDRESS ?= 127.0.0.1
WORKERS ?= 2

.PHONY: help setup train sweep test check lint types arch format ui cluster mlflow-server prometheus

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 15

setup: ## system packages and .venv; seconds where they are there
	@PYTHON="$(PYTHON)" cluster/provisioning/setup.sh

train: setup ## train, evaluate and register a network on the built-in digits
	.venv/bin/python pipelines/train.py --config configs/digits.yaml

sweep: setup ## search for the best small network for three budgets on the built-in digits
	.venv/bin/python pipelines/tune.py --config configs/sweeps/digits.yaml

test: setup ## all tests, end-to-end tests one after the other; those of servers that cannot be installed are skipped
	-@cluster/provisioning/packages.sh iproute2 util-linux postgresql prometheus
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile tests/unit tests/reference tests/distributed
	.venv/bin/python -m pytest tests/e2e

check: lint types arch ## format, lint, types and import directions

lint: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/hadolint Dockerfile
	.venv/bin/shellcheck cluster/*/*.sh .ci/run
	.venv/bin/cfn-lint cluster/provisioning/aws.yaml

types: setup
	.venv/bin/basedpyright

arch: setup
	.venv/bin/lint-imports

format: setup ## format the code and mend what the linter can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

ui: setup ## runs, curves and models of this folder in the browser
	@! (: </dev/tcp/127.0.0.1/$(PORT)) 2>/dev/null || \
		{ echo "error: port $(PORT) is in use; choose another: make ui PORT=5001" >&2; exit 1; }
	@test -e mlflow.db || { echo "error: $(CURDIR) has no mlflow.db, as no run was logged here; train" \
		"a network first: make train" >&2; exit 1; }
	PATH="$(CURDIR)/.venv/bin:$$PATH" mlflow ui --port $(PORT)

cluster: setup ## Ray hosts, S3 and MLflow on this machine, to try a cloud on; HOSTS=3 for more
	@cluster/provisioning/packages.sh iproute2 util-linux
	@PATH="$(CURDIR)/.venv/bin:$$PATH" python -m cluster.local up --hosts $(HOSTS)

mlflow-server: setup ## a team's MLflow: PostgreSQL, S3, users; ADDRESS=0.0.0.0 for other machines
	.venv/bin/python -m cluster.mlflow_server serve --host $(ADDRESS) --port $(PORT)

prometheus: ## Prometheus on a cluster's head; NODES=FILE where Ray keeps its list of nodes elsewhere
	@NODES="$(NODES)" cluster/monitoring/prometheus.sh
