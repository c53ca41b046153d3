# Everything runs in .venv, which these targets make. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# By the environment, constraints hold for what builds in isolation, too; newer versions of pip have a name of its own for these.
CONSTRAINED := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
PIP := $(CONSTRAINED) $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Tests start hundreds of processes: each would compile all that it imports, where the environment says that nothing is kept.
unexport PYTHONDONTWRITEBYTECODE
# Kernels take minutes to compile: once for the environment, the wheel and the wheel of the tests (setup.py).
export SALMONRUN_KERNEL_CACHE := $(CURDIR)/build/kernels

.PHONY: help demo demo-checkpoint demo-quality bench bench-smoke bench-serving soak endurance test-gpu bench-gpu hearing kernels gpu-compile conformance tools-test emulate fuzz fuzz-guided kill-storm faults sanitize sanitize-address sanitize-thread test check lint types imports wheel pytest page-test install-test docs docs-test clean ray-test optimum-test sbom

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# What the demo's bundles take for credible is measured on.
CALIBRATED := --calibration-speech demo/calibration/annotation.json

demo: $(VENV)/.export ## export the demo checkpoint, check the bundle, let it answer about recordings and follow one as it is spoken
	@rm -rf build/demo && mkdir -p build/demo
	$(BIN)/salmonrun export demo/checkpoint build/demo/bundle --encoder-precision int8 --llm-precision int4 $(CALIBRATED)
	$(BIN)/salmonrun check build/demo/bundle
	$(BIN)/python demo/answer.py build/demo/bundle
	$(BIN)/python demo/follow.py build/demo/bundle

# The voices that are no programs: a folder of Piper voices and one of Kokoro-82M (demo/README.md says where they are from).
PIPER := build/voices/piper
KOKORO := build/voices/kokoro
DEMO := build/demo-checkpoint
SPEAKING := --engines espeak-ng flite piper=$(PIPER) --speed 0.15 --workers 2
demo-checkpoint: $(DEMO)/streaming/final ## train the demo checkpoint anew (about 90 minutes on two cores; needs espeak-ng, flite, Piper and Kokoro)
	@echo "$< is the checkpoint; make demo-quality CHECKPOINT=$< measures it"

$(DEMO)/train/annotation.json: | $(VENV)/.export
	$(BIN)/salmonrun synthesize $(DEMO)/train --speech 12000 --sounds 2500 --mixtures 2500 --pauses 0.25 --fragments 0.1 $(SPEAKING)

$(DEMO)/kokoro/annotation.json: | $(VENV)/.export
	$(BIN)/salmonrun synthesize $(DEMO)/kokoro --speech 1200 --sounds 0 --mixtures 0 --engines kokoro=$(KOKORO) --speed 0.1 --workers 2

$(DEMO)/rejected/annotation.json: | $(VENV)/.export
	$(BIN)/salmonrun synthesize $(DEMO)/rejected --speech 0 --sounds 1200 --mixtures 0 --others 3600 --nothing '(nothing)' --seed 2 $(SPEAKING)

$(DEMO)/noises/annotation.json: | $(VENV)/.export
	$(BIN)/salmonrun synthesize $(DEMO)/noises --speech 0 --sounds 400 --mixtures 0 --seed 1 --workers 2

$(DEMO)/start: | $(DEMO)/train/annotation.json
	$(BIN)/salmonrun init $@ --preset demo --fresh --texts $(DEMO)/train/annotation.json

# A run that was cut goes on from its latest snapshot.
FINETUNE = $(BIN)/salmonrun finetune $(if $(wildcard $(@D)/checkpoint-*),--resume) --cfg-path

$(DEMO)/encoder/final: | $(DEMO)/start $(DEMO)/kokoro/annotation.json
	$(FINETUNE) recipes/demo-encoder.yaml

$(DEMO)/model/final: | $(DEMO)/encoder/final $(DEMO)/rejected/annotation.json
	$(FINETUNE) recipes/demo-model.yaml

$(DEMO)/streaming/final: | $(DEMO)/model/final $(DEMO)/noises/annotation.json
	$(FINETUNE) recipes/demo-streaming.yaml

CHECKPOINT := demo/checkpoint
QUALITY := build/demo-quality
demo-quality: $(VENV)/.export ## measure the demo checkpoint, and bundles of it, on held-out voices and sentences
	@rm -rf $(QUALITY) && mkdir -p $(QUALITY)
	$(BIN)/salmonrun synthesize $(QUALITY)/held-out --held-out --speech 400 --sounds 240 --mixtures 120 --workers 2
	$(BIN)/salmonrun synthesize $(QUALITY)/pieces --held-out --speech 300 --sounds 0 --mixtures 0 --pauses 1 --seed 1 --workers 2
	$(BIN)/salmonrun synthesize $(QUALITY)/refused --held-out --speech 0 --sounds 100 --mixtures 0 --others 300 --nothing '(nothing)' --seed 1 --workers 2
	$(BIN)/salmonrun export $(CHECKPOINT) $(QUALITY)/int8-int4 --encoder-precision int8 --llm-precision int4 $(CALIBRATED)
	$(BIN)/salmonrun export $(CHECKPOINT) $(QUALITY)/int8-int8 --encoder-precision int8 --llm-precision int8
	@for model in $(CHECKPOINT) $(QUALITY)/int8-int8 $(QUALITY)/int8-int4; do \
		$(BIN)/salmonrun evaluate $$model $(QUALITY)/held-out/annotation.json \
			--out $(QUALITY)/$$(basename $$model).jsonl || exit 1; \
	done
	@for set in pieces refused; do \
		$(BIN)/salmonrun evaluate $(QUALITY)/int8-int4 $(QUALITY)/$$set/annotation.json --out $(QUALITY)/$$set.jsonl || exit 1; \
	done
	$(BIN)/salmonrun evaluate $(QUALITY)/int8-int4 $(QUALITY)/held-out/annotation.json --task asr --out $(QUALITY)/asr.jsonl \
		--reliability $(QUALITY)/reliability.png --out-of-domain $(QUALITY)/refused/annotation.json
	$(BIN)/python demo/streaming_quality.py $(QUALITY)/int8-int8 $(QUALITY)/held-out/annotation.json

PEERS_ROOT := build/peers
bench: $(VENV)/.dev ## measure bundles and other engines for docs/performance.md: making all of it takes an hour, measuring another
	$(BIN)/python -m benchmarks.bundles
	$(BIN)/python -m benchmarks.peers.compare --root $(PEERS_ROOT) --docs docs $(CHECKOUTS)
	$(BIN)/python -m benchmarks.decoders.compare $(PEERS_ROOT)/models/Llama-3.2-1B/salmonrun-int4/bundle --docs docs

bench-smoke: $(VENV)/.dev ## the comparison in seconds: tiny models, PyTorch alone beside us
	$(BIN)/python -m benchmarks.peers.compare --root $(PEERS_ROOT) --shape tiny --rounds 2 --busy --only salmonrun,pytorch \
		--python torch=$(BIN)/python

bench-serving: $(VENV)/.dev ## how many live streams and requests a server carries, for docs/performance.md (minutes; make demo first)
	$(BIN)/python -m benchmarks.serving build/demo/bundle --docs docs $(SERVING)

soak: $(VENV)/.dev ## half an hour of streams and requests at one server: does it last? (make demo first; SOAK='--minutes 5')
	$(BIN)/python -m benchmarks.serving.soak build/demo/bundle $(SOAK)

endurance: $(VENV)/.dev ## ten hours of audio through transcribe and through one stream: memory, samples (make demo first; ENDURANCE='--minutes 60')
	$(BIN)/python -m benchmarks.endurance build/demo/bundle --minutes 600 --pause 20 --update 2 $(ENDURANCE)

# Of a GPU, unless DEVICE=cpu. A step whose file is in build/gpu/DEVICE is not done again, unless it failed.
DEVICE := cuda
test-gpu: $(VENV)/.dev ## does a GPU compute what the CPU does? (minutes, goes on where it was; DEVICE=cpu tries it without one)
	$(BIN)/python -m benchmarks.gpu test --device $(DEVICE) $(GPU)

bench-gpu: $(VENV)/.dev ## steps, memory, latency and streams on a GPU (minutes, goes on where it was; DEVICE=cpu tries it without one)
	$(BIN)/python -m benchmarks.gpu bench --device $(DEVICE) $(GPU)

hearing: $(VENV)/.dev ## is everybody heard? joined recordings, pauses, sounds, telephones; needs espeak-ng and flite (HEARING=--quick: minutes)
	$(BIN)/python -m benchmarks.hearing.measure --docs docs $(HEARING)

kernels: $(VENV)/.dev ## build the native kernels in place, again after a change in kernels/cpu
	$(BIN)/python setup.py --quiet build_ext --inplace

gpu-compile: $(VENV)/.dev ## compile the kernels for GPUs for sm_80 and sm_90, where none is needed: registers, shared memory, spills (minutes)
	TRITON_INTERPRET=0 $(BIN)/python -m salmonrun.kernels.gpu

MINUTES := 10
FUZZ :=
fuzz: $(VENV)/.dev ## mutants of all targets, each refused or run, in MINUTES=10 (FUZZ='--target bundles --seed 1 --count 1000')
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(FUZZ)

SECONDS := 60
fuzz-guided: $(VENV)/.dev ## the same led by coverage, for SECONDS=60 a reader: recipes, manifests, graphs, tokenizers, pickles, and more
	$(BIN)/python -m tests.fuzz.guided --seconds $(SECONDS)

KILLS := 40
kill-storm: $(VENV)/.dev ## kill what writes at any moment: nothing half-made opens, the next run is whole (minutes; KILLS=200)
	$(BIN)/python -m tests.kill_storm --kills $(KILLS)

FAULTS :=
faults: $(VENV)/.dev ## full disks, failed reads, no memory, at every call one after another (minutes; FAULTS='--most 1000 --kind write')
	$(BIN)/python -m tests.faults $(FAULTS)

emulate: $(VENV)/.dev ## the kernels of processors that this one is not, against the portable ones, in an emulator (needs apt-get)
	@(command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64-static) > /dev/null || \
		apt-get install -y --no-install-recommends g++-aarch64-linux-gnu qemu-user-static
	$(BIN)/python -m pytest -m emulate -rs tests/kernels/test_other_processors.py

# Builds of their own, beside the one that is used. Python is not built with sanitizers: their runtime is loaded in front of it, and
# libstdc++ behind that, whose exceptions it has to see. The folder's own conftest.py is enough: the one above it loads PyTorch.
# What a sanitizer says is not captured, since it may be the last.
, := ,
SANITIZED := build/sanitize
SANITIZED_TESTS = $(BIN)/python -m pytest -p tests.helpers.native_build --native-build $(@:sanitize-%=$(SANITIZED)/%) \
	--confcutdir tests/kernels -o timeout=3600 --capture=no
preload = LD_PRELOAD="$$($(CXX) -print-file-name=$(1).so) $$($(CXX) -print-file-name=libstdc++.so)"
define build_sanitized
	$(BIN)/python -m cmake -S kernels/cpu -B $(@:sanitize-%=$(SANITIZED)/%) -DCMAKE_CXX_COMPILER=$(CXX) \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DSALMONRUN_SANITIZE=$(1)
	$(BIN)/python -m cmake --build $(@:sanitize-%=$(SANITIZED)/%) --parallel
endef

sanitize: sanitize-address sanitize-thread ## the kernels' tests under sanitizers: memory, undefined behaviour, leaks, threads (minutes)

sanitize-address: $(VENV)/.dev
	$(call build_sanitized,address$(,)undefined)
	ASAN_OPTIONS=malloc_context_size=2 LSAN_OPTIONS=suppressions=tests/kernels/foreign_leaks.txt:print_suppressions=0 \
		UBSAN_OPTIONS=print_stacktrace=1 $(call preload,libasan) \
		$(SANITIZED_TESTS) $(filter-out %_formats.py %_reference.py,$(wildcard tests/kernels/test_*.py))

# Memory that is not ours is not looked at: only what the kernels themselves read and write can be a race of theirs.
sanitize-thread: $(VENV)/.dev
	$(call build_sanitized,thread)
	TSAN_OPTIONS=ignore_noninstrumented_modules=1 $(call preload,libtsan) $(SANITIZED_TESTS) tests/kernels/test_threads.py

test: lint types imports wheel pytest ## everything that must pass

check: lint types imports wheel ## the fast checks alone

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports

wheel: $(VENV)/.dev ## the sdist, and the wheel built out of it, in build/dist
	@rm -rf build/dist
	$(BIN)/pyproject-build --no-isolation --outdir build/dist
	$(BIN)/check-wheel-contents build/dist/*.whl

pytest: $(VENV)/.dev
	$(BIN)/python -m pytest -n logical --dist worksteal --durations 15

conformance: $(VENV)/.dev ## the server's protocols asked at length: Schemathesis with 200 examples of each route, frames, OpenAI's types (minutes)
	EXAMPLES=200 $(BIN)/python -m pytest -o timeout=3600 tests/runtime/server/test_openapi.py tests/runtime/server/test_frames.py \
		tests/runtime/server/test_realtime_events.py tests/runtime/server/test_vllm_dialect.py

tools-test: $(VENV)/.dev ## what takes long: programs of benchmarks from end to end, killed runs, fuzzing led by coverage, the runtime's tests on the decoder for GPUs (minutes)
	$(BIN)/python -m pytest -m tools -rs tests
	$(BIN)/python -m pytest -n auto --decoder torch tests/runtime

# The system's Chromium: Playwright's own is a download for every version of it.
page-test: $(VENV)/.dev ## the page in a real browser, also on a phone and with a microphone (installs Chromium with apt-get if there is none)
	@command -v chromium > /dev/null || apt-get install -y --no-install-recommends chromium
	$(PIP) playwright
	$(BIN)/python -m pytest -m browser -rs tests/runtime/server/page

install-test: wheel ## the wheel in fresh environments of every Python there is, and beside PyPI's kernels (needs the network)
	$(BIN)/python -m pytest -m install -rs tests/packaging

# Ray is large, and optimum lies beside transformers: each has an environment of its own.
RAY := build/ray
RAY_PIP = $(RAY)/venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
ray-test: $(RAY)/venv/.ray $(RAY)/bundle/bundle.json ## replicas on Ray Serve and files by Ray Data, killed under load (minutes, 1 GB; needs the network)
	$(RAY)/venv/bin/python -m pytest -m ray -rs --confcutdir tests/ray --bundle $(RAY)/bundle tests/ray

$(RAY)/venv/.ray: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RAY)/venv
	$(RAY_PIP) --editable '.[ray]' openai psutil pytest pytest-timeout pyyaml
	@touch $@

$(RAY)/bundle/bundle.json: | $(VENV)/.export
	@mkdir -p $(RAY) && rm -rf $(RAY)/bundle
	$(BIN)/salmonrun export demo/checkpoint $(RAY)/bundle --encoder-precision int8 --llm-precision int4

optimum-test: wheel ## optimum-cli export salmonrun, from two wheels in a fresh environment (minutes; needs the network)
	$(BIN)/python -m pytest -m optimum -rs tests/packaging/test_optimum.py

# What runs where a bundle is served; nanobind, which the kernels are built with, is a part of their wheel.
SBOM := build/sbom
sbom: wheel ## all that `pip install salmonrun[serve,vad,hub,sign]` brings, as CycloneDX, in build/dist (needs the network)
	@rm -rf $(SBOM) && $(PYTHON) -m venv $(SBOM)/tool && $(PYTHON) -m venv $(SBOM)/venv --without-pip
	$(SBOM)/tool/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	$(SBOM)/tool/bin/python -m pip --python $(SBOM)/venv/bin/python install --quiet --disable-pip-version-check \
		--constraint constraints.txt "$$(ls build/dist/salmonrun-*.whl)[serve,vad,hub,sign]"
	$(SBOM)/tool/bin/cyclonedx-py environment $(SBOM)/venv/bin/python --pyproject pyproject.toml --mc-type library \
		--output-reproducible --output-file build/dist/salmonrun.cdx.json

docs: $(VENV)/.docs ## the site with the API reference, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-test: wheel docs ## every command and program of the pages as it is written: the wheel in an empty environment, and a clone (minutes)
	$(BIN)/python -m pytest -m docs -rs tests/docs

clean: ## remove the environment and all caches
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.export: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (the first time this takes a few minutes) ..."
	$(PIP) --editable '.[export]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (the first time this takes a few minutes) ..."
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.export

$(VENV)/.docs: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[docs]'
	@touch $@
