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
        self.templated: bool = tokenizer.chat_template is not None
        self._system = (Message("system", system_prompt),) if system_prompt else ()
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token: set eos_token in its tokenizer_config.json")
        self.stop_token_ids: tuple[int, ...] = (int(tokenizer.eos_token_id),)

    def plain(self) -> "ChatRenderer":
        """The same tokenizer as for a base model: no template, no system prompt."""
        renderer = ChatRenderer(self._tokenizer)
        renderer.templated = False
        return renderer

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Tokens of the chat up to where the assistant answers."""
        messages = (*self._system, *prompt.messages)
        if not self.templated:
            return tuple(self._tokenizer.encode(_joined(messages)))
        return self._apply(messages, add_generation_prompt=True)

    def completion_ids(self, prompt: Prompt, prompt_ids: Sequence[int], answer: str) -> tuple[int, ...]:
        """Tokens of a written answer, as the policy would have sampled them after ``prompt_ids`` of ``prompt``.

        They are what the template makes of the whole conversation, from the end of the prompt to the end-of-sequence
        token: what a template writes after that token (often a line break) is never sampled, and is left out. A
        template that ends a turn otherwise gets the token added. Where the rendered conversation does not begin with
        the rendered prompt, the answer is tokenised by itself: the prompt stays what the policy is asked.
        """
        messages = (*self._system, *prompt.messages)
        if self.templated:
            whole = self._apply((*messages, Message("assistant", answer)), add_generation_prompt=False)
        else:
            whole = tuple(self._tokenizer.encode(_joined(messages) + answer))
        start = len(prompt_ids)
        if whole[:start] != tuple(prompt_ids):
            whole, start = tuple(self._tokenizer.encode(answer, add_special_tokens=False)), 0
        ends = [i for i, token in enumerate(whole) if i >= start and token in self.stop_token_ids]
        return whole[start : ends[0] + 1] if ends else (*whole[start:], *self.stop_token_ids[:1])

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Tokens of an assistant's answer by itself, the end-of-sequence token included."""
        return (*self._tokenizer.encode(text, add_special_tokens=False), *self.stop_token_ids)

    def text(self, token_ids: Sequence[int]) -> str:
        """What a person reads: special tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _apply(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> tuple[int, ...]:
        ids = self._tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in messages],
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=False,
        )
        return tuple(ids)


def _joined(messages: Sequence[Message]) -> str:
    return "\n\n".join(m.content for m in messages)
