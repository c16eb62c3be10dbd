# `make xpo` is the demonstration; CI runs `make test` and `make slow`.
PY := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: setup xpo polar test slow quick lint bench clean requirements

setup:
	@./setup.sh

xpo: setup
	@./recipes/xpo.yaml

# What rewards/polar/weights/smollm2-135m was made with: policies, their samples, both trainings.
polar: setup
	@align run recipes/sft.yaml run.dir=runs/polar/steps sft.log_every=7 sft.checkpoint_every=7
	@align run recipes/sft.yaml run.dir=runs/polar/worked data.answers=reference sft.log_every=7 sft.checkpoint_every=7
	@align run recipes/explore_execute.yaml run.dir=runs/polar/plans
	@align polar corpus recipes/polar_corpus.yaml
	@align run recipes/polar_pretrain.yaml
	@align run recipes/polar_finetune.yaml
	@align polar eval runs/polar_finetune/model --data runs/polar_corpus/ranked/heldout_policies.jsonl

test: setup lint
	@$(PY) -m pytest -q -m "not slow"

slow: setup
	@$(PY) -m pytest -q -m slow

quick: setup
	@$(PY) -m pytest -q -m "not slow and not e2e"

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

bench: setup
	@align bench step recipes/bench/step.yaml

# Pins for the CPU; run where torch==2.13.0+cpu can be found (UV_FIND_LINKS or UV_TORCH_BACKEND=cpu).
requirements:
	uv pip compile -q --python-version 3.11 --no-header --no-annotate --no-emit-find-links --extra cpu --extra demo \
	  --extra serve --extra robot --extra dev pyproject.toml -o requirements/cpu.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
