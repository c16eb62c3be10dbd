"""What a prompt asks for, guessed from its words.

A heuristic for reports by category where the data have none: regular expressions over an English prompt, first match
wins. It mistakes prompts; a difference between categories is a hint to look, never a finding.
"""

import re

OTHER = "factual and other"

_RULES: tuple[tuple[str, str], ...] = (
    (
        "coding",
        r"```|</?\w+>|\b(python|java(script)?|typescript|c\+\+|c#|golang|rust code|sql|html|css|regex|bash|linux|"
        r"excel|google sheets?|latex|api|json|xml|code|coding|program(ming)?|script(s|ing)? (in|that|for)|"
        r"algorithm|function (in|that|to)|compiler|software|docker|kubernetes|git|debug)\b",
    ),
    (
        "creative writing",
        r"\b(poem|haiku|limerick|sonnet|rhym\w+|story|stories|short fiction|novel|lyrics|song|rap|joke|riddle|pun|"
        r"dialogue|screenplay|monologue|fan ?fic\w*|slogan|tagline|caption|parody|role-?play|pretend|imagine|"
        r"ascii art|creative|script for|chapter|scene|character)\b",
    ),
    (
        "math and reasoning",
        r"\b(calculate|solve|equation|math\w*|algebra|geometry|integral|derivative|probability|percent(age)?|"
        r"how many|how much (is|does|will)|sum of|theorem|matri(x|ces)|proof|prove|logic(al)?|puzzle|reasoning|"
        r"step[- ]by[- ]step|statistic\w*|variance|average speed|true or false)\b|\d\s*[-+*/x=^]\s*\d",
    ),
    (
        "writing and editing",
        r"\b(write|rewrite|draft|compose|edit|proofread|summar\w+|paraphrase|translate|convert|email|e-mail|letter|"
        r"essay|article|blog|paragraph|resume|cover letter|proposal|template|headline|classify|categori[sz]e|"
        r"sentiment|extract|citation|describe|description|review)\b",
    ),
    (
        "how-to and advice",
        r"\bhow (do|can|should|could|would|to)\b|\b(should i|advice|advise|tips?|recommend\w*|suggest\w*|recipe|ideas?|"
        r"routine|plan|best way|help me|guide|instructions?|improve|steps)\b",
    ),
)
_COMPILED = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _RULES)

CATEGORIES: tuple[str, ...] = (*(name for name, _ in _RULES), OTHER)


def category_of(prompt: str) -> str:
    """One of :data:`CATEGORIES`; prompts that no rule matches ask for facts, mostly."""
    return next((name for name, pattern in _COMPILED if pattern.search(prompt)), OTHER)
