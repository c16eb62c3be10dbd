"""The one place that turns a chat into tokens, and tokens into text."""

from collections.abc import Sequence
from typing import Any

from rollouts.types import Message, Prompt


class ChatRenderer:
    """Renders prompts with the model's own chat template, and decodes what comes back.

    A model without a template gets the contents joined by blank lines, as a base model expects.
    """

    def __init__(self, tokenizer: Any, system_prompt: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._system = (Message("system", system_prompt),) if system_prompt else ()
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token: set eos_token in its tokenizer_config.json")
        self.stop_token_ids: tuple[int, ...] = (int(tokenizer.eos_token_id),)

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Tokens of the chat up to where the assistant answers."""
        messages = [{"role": m.role, "content": m.content} for m in (*self._system, *prompt.messages)]
        if self._tokenizer.chat_template is None:
            return tuple(self._tokenizer.encode("\n\n".join(m["content"] for m in messages)))
        ids = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return tuple(ids)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Tokens of an assistant's answer, the end-of-sequence token included."""
        return (*self._tokenizer.encode(text, add_special_tokens=False), *self.stop_token_ids)

    def text(self, token_ids: Sequence[int]) -> str:
        """What a person reads: special tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))
