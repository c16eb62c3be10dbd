"""The data card: what a corpus holds, what cleaning did, and how far shortcuts get. ``card.json``, ``card.md``,
``lengths.png``."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rewards.polar.corpus.config import SPLITS, CorpusConfig, Split
from rewards.polar.corpus.shortcuts import (
    Accuracy,
    Embedder,
    Lengths,
    embedding_rule,
    fitted_length_rule,
    length_rules,
    policy_rule,
)
from rewards.polar.corpus.store import LENGTHS, TEXTS, load_table, spread_rows
from rewards.polar.files import whole_file, write_json, write_text

CARD_FILE, TEXT_FILE, PICTURE_FILE = "card.json", "card.md", "lengths.png"
CLEANING = ("samples", "loops", "trimmed", "empty", "unfinished", "identical")
_BAR = 40


@dataclass(frozen=True, slots=True)
class SplitCard:
    """One split. ``policies`` counts triples by policy and role (``a``: reference and chosen; ``b``: rejected);
    ``histograms`` counts lengths by upper bound, a power of two in tokens; ``before`` and ``shortcuts`` are the
    accuracies of rules without and with matching."""

    triples: int
    modes: dict[str, int]
    policies: dict[str, dict[str, int]]
    histograms: dict[str, dict[int, int]]
    before: dict[str, Accuracy]
    shortcuts: dict[str, Accuracy]


@dataclass(frozen=True, slots=True)
class Card:
    """The whole card."""

    tokenizer: str
    seed: int
    splits: dict[Split, SplitCard]
    ledger: dict[str, int]
    cleaning: dict[str, dict[str, int]]


def make_card(
    config: CorpusConfig,
    folder: Path,
    ledger: Mapping[str, int],
    cleaning: Mapping[str, Mapping[str, int]],
    unmatched: Mapping[Split, Sequence[Lengths]],
    embed: Embedder | None,
) -> Card:
    """Describes the triples that are stored in ``folder``."""
    return Card(
        tokenizer=config.tokenizer,
        seed=config.seed,
        splits={split: _split_card(config, folder, split, unmatched[split], embed) for split in SPLITS},
        ledger=dict(ledger),
        cleaning={name: {column: counts.get(column, 0) for column in CLEANING} for name, counts in cleaning.items()},
    )


def _split_card(
    config: CorpusConfig, folder: Path, split: Split, unmatched: Sequence[Lengths], embed: Embedder | None
) -> SplitCard:
    columns = load_table(folder, split, ("mode", "policy_a", "policy_b", *LENGTHS)).to_pydict()
    roles = {role: Counter(columns[f"policy_{role}"]) for role in "ab"}
    return SplitCard(
        triples=len(columns["mode"]),
        modes=dict(sorted(Counter(columns["mode"]).items())),
        policies={
            policy.name: {role: count[policy.name] for role, count in roles.items()} for policy in config.policies
        },
        histograms={name: histogram(columns[f"{name}_tokens"]) for name in TEXTS},
        before=length_rules(unmatched),
        shortcuts=_shortcuts(config, folder, split, embed),
    )


def _shortcuts(config: CorpusConfig, folder: Path, split: Split, embed: Embedder | None) -> dict[str, Accuracy]:
    """What is fitted is fitted on train, and measured elsewhere: on its own data it would beat chance by itself."""
    lengths, pairs = _lengths(folder, split), _policies(folder, split)
    found: dict[str, Accuracy | None] = {**length_rules(lengths)}
    if split != "train":
        found["fitted lengths"] = fitted_length_rule(_lengths(folder, "train"), lengths)
        found["policy"] = policy_rule(_policies(folder, "train"), pairs)
    if embed is not None:
        rows = spread_rows(folder, split, config.embedded_triples)
        references, chosen, rejected = ([row[name] for row in rows] for name in TEXTS[1:])
        found["embedding"] = embedding_rule(references, chosen, rejected, embed)
    return {rule: value for rule, value in found.items() if value is not None}


def _lengths(folder: Path, split: Split) -> list[Lengths]:
    columns = load_table(folder, split, LENGTHS[1:]).to_pydict()
    return list(zip(*(columns[name] for name in LENGTHS[1:]), strict=True))


def _policies(folder: Path, split: Split) -> list[tuple[str, str]]:
    columns = load_table(folder, split, ("policy_a", "policy_b")).to_pydict()
    return list(zip(columns["policy_a"], columns["policy_b"], strict=True))


def histogram(lengths: Sequence[int]) -> dict[int, int]:
    """How many lengths are at most 1, 2, 4, 8 and so on, and above the bound before; no bound is left out between."""
    counts = Counter(max(length - 1, 0).bit_length() for length in lengths)
    if not counts:
        return {}
    return {2**power: counts[power] for power in range(min(counts), max(counts) + 1)}


def write_card(folder: Path, card: Card) -> None:
    """The card as data, as text and as a picture."""
    _draw(folder / PICTURE_FILE, card)
    write_text(folder / TEXT_FILE, card_text(card))
    write_json(folder / CARD_FILE, asdict(card))


def card_text(card: Card) -> str:
    """The card in Markdown."""
    total = sum(part.triples for part in card.splits.values())
    lines = [
        "# Pre-training corpus of a policy discriminator",
        "",
        f"{total} triples. In each, `reference` and `chosen` are samples of policy A and `rejected` is one of policy B "
        "of the same mode. Validation prompts are not in train; the prompts of `heldout_policies` are in neither, and "
        "at least one policy of each of its triples is in no other split.",
        "",
        f"Lengths are in tokens of `{card.tokenizer}`; seed {card.seed}. Intervals are Wilson's, 95%.",
        "",
        "## Shortcuts",
        "",
        "Accuracy of rules that do not compare manners, before and after matching; one half is chance, a tie counts "
        "half. `closest`: in length to the reference. `fitted lengths`: a logistic regression on the three lengths; "
        "`policy`: the policy that is more often A; both fitted on train. `embedding`: more similar to the reference, "
        "on a sample.",
        "",
        "| split | rule | before | after | triples |",
        "|---|---|---|---|---|",
    ]
    for split, part in card.splits.items():
        for rule, value in part.shortcuts.items():
            before = _shown(part.before[rule]) if rule in part.before else "-"
            lines.append(f"| {split} | {rule} | {before} | {_shown(value)} | {value.count} |")
    lines += ["", "## Prompts", "", "| what | count |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {count} |" for name, count in card.ledger.items()]
    lines += ["", "## Cleaning", "", "Samples of each policy.", ""]
    lines += [f"| policy | {' | '.join(CLEANING)} |", "|---" * (len(CLEANING) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(str(n) for n in counts.values())} |" for name, counts in card.cleaning.items()]
    for split, part in card.splits.items():
        lines += _split_text(split, part)
    return "\n".join(lines) + "\n"


def _split_text(split: Split, part: SplitCard) -> list[str]:
    modes = ", ".join(f"{count} {mode}" for mode, count in part.modes.items())
    lines = ["", f"## Split {split}", "", f"{part.triples} triples" + (f": {modes}." if modes else ".")]
    if not part.triples:
        return lines
    lines += ["", "| policy | A | B |", "|---|---|---|"]
    lines += [f"| {name} | {roles['a']} | {roles['b']} |" for name, roles in part.policies.items()]
    for name, counts in part.histograms.items():
        highest = max(counts.values())
        lines += ["", f"Tokens of `{name}`:", "", "```"]
        lines += [
            f"<= {bound:>6} {'#' * -(-count * _BAR // highest):<{_BAR}} {count}" for bound, count in counts.items()
        ]
        lines.append("```")
    return lines


def _shown(value: Accuracy) -> str:
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _draw(target: Path, card: Card) -> None:
    """Histograms of lengths, a panel a split; chosen and rejected should lie upon each other."""
    # The object interface and the Agg canvas: no display is looked for, and nobody's pyplot state changes.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axis, (split, part) in zip(figure.subplots(1, len(card.splits)), card.splits.items(), strict=True):
        bounds = sorted({bound for counts in part.histograms.values() for bound in counts})
        for name, counts in part.histograms.items():
            axis.plot(range(len(bounds)), [counts.get(bound, 0) for bound in bounds], marker="o", label=name)
        axis.set_xticks(range(len(bounds)), [str(bound) for bound in bounds])
        axis.set_title(f"{split}: {part.triples} triples", loc="left")
        axis.set_xlabel("length in tokens, at most")
        axis.legend(frameon=False)
    with whole_file(target) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
