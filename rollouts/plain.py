"""Prompts and completions as plain dictionaries, for checkpoints that hold no classes."""

from typing import Any

from rollouts.types import Completion, Finish, Message, Origin, Prompt


def plain_prompt(prompt: Prompt) -> dict[str, Any]:
    """Everything but the metadata, which only a verifier needs, when the prompt is fresh."""
    return {
        "id": prompt.id,
        "messages": [[m.role, m.content] for m in prompt.messages],
        "reference": prompt.reference,
        "answer": prompt.answer,
    }


def prompt_from(plain: dict[str, Any]) -> Prompt:
    messages = tuple(Message(role, content) for role, content in plain["messages"])
    return Prompt(plain["id"], messages, plain["reference"], plain["answer"])


def plain_completion(completion: Completion) -> dict[str, Any]:
    return {
        "token_ids": list(completion.token_ids),
        "logprobs": list(completion.logprobs),
        "text": completion.text,
        "finish": str(completion.finish),
        "origin": str(completion.origin),
        "policy_version": completion.policy_version,
    }


def completion_from(plain: dict[str, Any]) -> Completion:
    return Completion(
        token_ids=tuple(plain["token_ids"]),
        logprobs=tuple(plain["logprobs"]),
        text=plain["text"],
        finish=Finish(plain["finish"]),
        origin=Origin(plain["origin"]),
        policy_version=plain["policy_version"],
    )
