"""A supervised warm start, from its recipe."""

import time
from typing import Any

from align.build.session import Session
from align.build.text import load_prompts
from align.learners.build import adapter_config
from align.recipe import SFTRecipe


def run_sft(recipe: SFTRecipe, session: Session) -> None:
    """Runs a warm start to its end, or continues it; one that is finished is only shown."""
    if session.has_summary():
        session.show_finished("start another with run.dir=runs/new")
        return
    from align.sft.run import run
    from align.tracking.console import terminal_console
    from align.tracking.report import Outcome, plot_run, summary

    session.say(f"model {recipe.model.path}")
    heldout, train = load_prompts(recipe.prompts)
    began = time.monotonic()
    session.quiet()
    outcome = run(
        _config(recipe),
        session.folder.path,
        train=train,
        heldout=heldout,
        make_tracker=lambda steps: session.tracker(steps, {"model": recipe.model.path, "runs on": "local"}),
    )
    both = [(b, a) for b, a in zip(outcome.before, outcome.after, strict=True) if b is not None and a is not None]
    path = session.folder.path
    plot_run(path, recipe.name)
    summary(
        Outcome(
            recipe=session.command,
            model=recipe.model.path,
            folder=path,
            steps=outcome.steps,
            minutes=(time.monotonic() - began) / 60,
            before=[b for b, _ in both] or None,
            after=[a for _, a in both] or None,
            next_steps={"go on with XPO": f"align run recipes/xpo.yaml model.path={path}/policy run.dir={path}-xpo"},
        ),
        terminal_console(session.terminal),
    )


def _config(recipe: SFTRecipe) -> Any:
    from align.sft import config

    data: Any
    match recipe.data.type:
        case "jsonl":
            data = config.JsonlData(**recipe.data.model_dump())
        case "worked":
            data = config.WorkedData(**recipe.data.model_dump())
        case "explore_execute":
            data = config.ExploreExecuteData(**recipe.data.model_dump())
    training = recipe.sft.model_dump(exclude={"lora"})
    return config.SFTRun(
        model=recipe.model.path,
        data=data,
        dtype=recipe.model.dtype,
        seed=recipe.seed,
        sft=config.SFTConfig(**training, lora=adapter_config(recipe.sft.lora) if recipe.sft.lora else None),
        evaluation=config.Evaluation(**recipe.evaluation.model_dump()),
    )
