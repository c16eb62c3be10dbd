"""The composition root: from a recipe to a run."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from align.build.polar import run_corpus, run_scaling, run_training
from align.build.preference import PreferenceRun
from align.build.robot import RobotRun
from align.build.session import Session
from align.build.sft import run_sft
from align.build.theory import run_theory
from align.errors import UserError
from align.recipe import Recipe


def run_recipe(recipe: Recipe, source: Path, overrides: Sequence[str]) -> int:
    """Runs a recipe to its end, or continues it where its run folder stands; returns the exit code.

    Everything that a user can mend raises ``UserError``.
    """
    with ExitStack() as stack, user_errors():
        stack.enter_context(_terminating_as_interrupt())
        session = Session(recipe, source, overrides, stack)
        match recipe.kind:
            case "preference":
                PreferenceRun(recipe, session).run()
            case "sft":
                run_sft(recipe, session)
            case "bandit":
                run_theory(recipe, session)
            case "polar_corpus":
                run_corpus(recipe, session)
            case "polar":
                run_training(recipe, session)
            case "polar_scaling":
                run_scaling(recipe, session)
            case "robot":
                RobotRun(recipe, session).run()
    return 0


@contextmanager
def user_errors() -> Iterator[None]:
    """Errors whose message already says what to do lose their traceback; all others keep it."""
    from align.buffers.transitions import BufferFault
    from align.learners.actor import LearnerError
    from cluster.host import HostError
    from cluster.weights import StoreError
    from rewards.errors import RewardError
    from rewards.polar.types import PolarError
    from rewards.success.errors import SuccessError
    from rollouts.engines.base import EngineError
    from rollouts.envs.api import EnvError
    from rollouts.episodes.files import EpisodeError
    from rollouts.models import ModelError
    from rollouts.policies.config import PolicyError
    from rollouts.policies.instruction import InstructionError
    from rollouts.prompts import PromptError

    text = (EngineError, ModelError, PromptError, RewardError, PolarError)
    robot = (BufferFault, EnvError, EpisodeError, InstructionError, LearnerError, PolicyError, SuccessError)
    try:
        yield
    except (HostError, StoreError, *text, *robot) as error:
        raise UserError(str(error)) from error
    except FloatingPointError as error:
        raise UserError(f"{error}: continue from the last checkpoint with a smaller learner.optimizer.lr") from error


@contextmanager
def _terminating_as_interrupt() -> Iterator[None]:
    """SIGTERM (``ray job stop``, a batch system) ends a run as Ctrl-C does: children stopped, files whole."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
