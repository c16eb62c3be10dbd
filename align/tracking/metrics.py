"""What every number means. A pattern (``*``) describes a family; an exact name wins over a pattern."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

METRICS: dict[str, str] = {
    # Learning: TRL's names, so that dashboards and habits carry over.
    "objective/kl": "log pi - log pi_ref of the policy's samples, summed over tokens, mean over completions (nats)",
    "objective/entropy": "-log pi of the policy's samples, summed over tokens, mean over completions (nats)",
    "rewards/chosen": "implicit reward beta * (log pi - log pi_ref) of chosen, mean over pairs (nats)",
    "rewards/rejected": "implicit reward beta * (log pi - log pi_ref) of rejected, mean over pairs (nats)",
    "rewards/margins": "rewards/chosen minus rewards/rejected, mean over pairs (nats)",
    "rewards/accuracies": "share of pairs whose implicit reward ranks chosen first (0..1)",
    "logps/chosen": "log pi of chosen, summed over tokens, mean over pairs (nats)",
    "logps/rejected": "log pi of rejected, summed over tokens, mean over pairs (nats)",
    "val/contain_eos_token": "share of completions that end with the end-of-sequence token (0..1)",
    "beta": "strength of the pull towards the reference policy (dimensionless)",
    "alpha": "weight of XPO's exploration bonus (dimensionless)",
    "loss/total": "the loss that is minimised, mean over pairs (nats); of supervised training, over completion tokens",
    "loss/preference": "-log sigmoid(beta * h), mean over pairs (nats)",
    "loss/bonus": "XPO's bonus alpha * (log pi - log pi_ref) of the reference sample, mean over pairs (nats)",
    "loss/orthogonality": "AdaLoRA's weighted distance of its A and B from orthogonal; part of loss/total (nats)",
    "xpo/ref_sample_logp": "log pi of the reference policy's samples, summed over tokens, mean over pairs (nats)",
    "optim/lr": "learning rate of this update (dimensionless)",
    "optim/grad_norm": "norm of the gradient before clipping, mean over updates",
    "adapter/rank_mean": "directions of AdaLoRA's update that are in use, mean over matrices",
    "mismatch/logp_gap": "|learner - sampler| log-probability of a completion, mean (nats a token)",
    "mismatch/logp_gap_max": "|learner - sampler| log-probability of a completion, largest (nats a token)",
    # Supervised warm starts.
    "sft/token_accuracy": "share of completion tokens that the model holds most likely (0..1)",
    "sft/token_entropy": "entropy of the next token on completions, mean (nats a token)",
    "sft/epoch": "passes through the training data so far",
    "data/examples": "examples that are trained on",
    "data/drafts": "plans drafted for explore-execute data",
    "data/dropped": "drafts that the filter refused; ledger.jsonl says why",
    # Reward models.
    "reward_model/accuracy": "share of training pairs whose chosen scores higher, mean over passes since the last log",
    "reward_model/margin": "score of chosen minus that of rejected on training pairs, mean (units of the reward)",
    "reward_model/mean": "score of chosen and rejected training sequences, mean (units of the reward)",
    "data/pairs": "pairs of sequences that are trained on",
    "data/tokens": "tokens trained on so far, both sequences of a pair, without padding",
    "data/truncated": "training pairs of which a part was cut to fit the model's lengths",
    "data/identical": "training pairs whose sides are the same tokens: nothing to learn from",
    "scaling/parameters": "parameters of the size of this row, all of them",
    "scaling/non_embedding_parameters": "parameters of the size of this row, without the embedding",
    "scaling/flops": "operations of its training: six for each parameter but the embedding's, and token",
    # Experience.
    "rollout/completions": "completions collected in this step",
    "rollout/tokens": "tokens generated in this step, end-of-sequence tokens included",
    "rollout/tokens_per_s": "tokens generated a second of generation",
    "rollout/length_mean": "tokens of a completion, mean",
    "rollout/clipped_ratio": "share of completions cut at the length limit (0..1)",
    "rollout/reference_completions": "completions drawn from the reference policy in this step, not from the cache",
    "rollout/engine_recoveries": "times that the engine was rebuilt after a failure, since the start of the process",
    # Judgement.
    "reward/mean": "score of the policy's samples, mean (units of the reward)",
    "reward/reference_mean": "score of the reference policy's samples, mean (units of the reward)",
    "reward/std": "standard deviation of the scores of the policy's samples (units of the reward)",
    "reward/raw_mean": "score of all samples before normalisation, mean (POLAR's own units)",
    "reward/raw_std": "standard deviation of the scores before normalisation (POLAR's own units)",
    "reward/raw_min": "smallest score before normalisation (POLAR's own units)",
    "reward/raw_max": "largest score before normalisation (POLAR's own units)",
    "reward/failed": "completions without a score; they take part in no pair",
    "reward/truncated_fraction": "share of scored items that had to be cut to the reward model's lengths (0..1)",
    "reward/cached_token_fraction": "share of the reward model's tokens that shared prefixes spared (0..1)",
    "reward/verified_mean": "share of the policy's samples that are right by a check nothing learns from (0..1)",
    "reward/verified_auc": "share of pairs (right, wrong) of one prompt that the reward puts in this order (0..1)",
    "reward/frac_zero_std": "share of prompts whose completions all score the same: nothing to learn from (0..1)",
    "label/pairs": "pairs made in this step",
    "label/ties": "pairs not made because both sides are judged the same, and ties are dropped",
    "label/tie_rate": "share of ties among the pairs that were judged, dropped or decided by a coin (0..1)",
    "label/identical": "pairs not made because both sides are the same tokens",
    "label/failed": "pairs not made because fewer than two completions could be judged",
    "label/margin": "score of chosen minus that of rejected, mean over pairs (units of the reward; a judge's log-odds)",
    "label/probability": "labeller's probability that chosen is the better one, mean over pairs (0..1)",
    "buffer/offline_fraction": "share of the pairs learnt from that come from a data set (0..1)",
    "buffer/fresh_fraction": "share of the pairs learnt from that are seen for the first time (0..1)",
    # Sending the weights back.
    "sync/probe_gap_max": "|engine - learner| log-probability of the probe after a sync, largest (nats)",
    "sync/probe_gap_mean": "|engine - learner| log-probability of the probe after a sync, mean (nats)",
    "sync/load_s": "seconds until the engine held the new weights",
    "sync/probe_s": "seconds of proving that it does",
    "sync/version": "version of the weights the engine holds",
    # Evaluation on data that nothing was trained on.
    "eval/accuracy": "share of held-out problems answered right; of held-out pairs whose chosen scores higher (0..1)",
    "eval/accuracy_low": "lower end of the 95% interval of eval/accuracy",
    "eval/accuracy_high": "upper end of the 95% interval of eval/accuracy",
    "eval/loss": "-log sigmoid of the margin of held-out pairs, mean; ln 2 is chance (nats)",
    "eval/margin": "score of chosen minus that of rejected on held-out pairs, mean (units of the reward)",
    "eval/length_mean": "tokens of a completion on held-out problems, mean",
    "eval/contain_eos_token": "share of held-out completions that end with the end-of-sequence token (0..1)",
    "eval/best_step": "loop step of the iterate with the best eval/accuracy so far",
    "eval/reward_mean": "raw reward of held-out answers, mean, where another judge gives accuracy (reward's units)",
    "eval/failed": "held-out completions whose score failed; they are left out of eval/accuracy",
    "eval/plan_adherence": "share of sampled held-out answers that are a plan and carry it out to the letter (0..1)",
    "eval/two_phase_*": "the same as eval/*, with a sampled plan and a greedy execution",
    # Small problems with exact answers (`align.theory`).
    "bandit/*/suboptimality": "max J_beta - J_beta(pi) of this round's iterate, mean over runs (units of the reward)",
    "bandit/*/suboptimality_low": "lower end of the 95% interval of the mean suboptimality over runs",
    "bandit/*/suboptimality_high": "upper end of the 95% interval of the mean suboptimality over runs",
    "bandit/*/stuck": "share of runs whose every iterate is at least `gap` suboptimal (0..1)",
    "sequences/*/suboptimality": "max J_beta - J_beta(pi) of the iterate, mean over seeds (units of the reward)",
    "sequences/*/suboptimality_low": "lower end of the 95% interval of the mean suboptimality over seeds",
    "sequences/*/suboptimality_high": "upper end of the 95% interval of the mean suboptimality over seeds",
    "sequences/*/stuck": "share of seeds whose every iterate is at least `gap` suboptimal (0..1)",
    "theory/suboptimality": "max J_beta - J_beta(pi) of the policy, by enumeration (units of the reward)",
    "theory/good_probability": "the policy's exact probability of a good completion (0..1)",
    # The system. The phases and `other` add up to `step`.
    "timing_s/step": "wall time from the previous step's end to this one's (seconds)",
    "timing_s/other": "wall time of the step that no phase claims (seconds)",
    "timing_s/*": "wall time of one phase in this step (seconds)",
    "perf/elapsed_s": "wall time since the run's first start, without pauses between stop and resume (seconds)",
    "perf/generate_s": "wall time of sampling from the policy and, where it was due, the reference (seconds)",
    "perf/reference_s_total": "wall time of reference log-probabilities in this step's updates (seconds)",
    "perf/forward_backward_s_total": "wall time of forward and backward passes in this step's updates (seconds)",
    "perf/optimizer_s_total": "wall time of optimiser steps in this step's updates (seconds)",
    "perf/train_gflop_total": "useful work of this step's forward and backward passes, no padding (10^9 operations)",
    "perf/*": "speed, memory or utilisation of the machine; the unit is the last part of the name",
}


def meaning(name: str) -> str | None:
    """What ``name`` measures, or ``None`` where the table does not know it."""
    if name in METRICS:
        return METRICS[name]
    return next((text for pattern, text in METRICS.items() if "*" in pattern and fnmatchcase(name, pattern)), None)


def undocumented(names: Iterable[str]) -> list[str]:
    """The names, sorted, that the table does not explain."""
    return sorted({name for name in names if meaning(name) is None})
