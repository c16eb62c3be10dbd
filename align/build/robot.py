"""A robot's fine-tuning: prior data, a reward model, the six parts of the loop, and what came of it."""

from typing import Any

from align.build import robot_parts as parts
from align.build.hosting import connect_to, end_learner, host_collector, host_learner
from align.build.robot_reward import hosted, lives_apart, ranker, success_model
from align.build.robot_scene import scene_name
from align.build.session import Session
from align.recipe.robot import RobotRecipe, TruthReward

POLICY, BEST, FILMS = "policy", "policy_best", "films"


class RobotRun:
    """A robot's run. ``prepare`` builds the parts, ``execute`` goes through the loop, ``summarise`` tells the end."""

    def __init__(self, recipe: RobotRecipe, session: Session) -> None:
        self.recipe, self.session = recipe, session
        self.folder = session.folder
        self.cluster: Any = None
        self.parts: Any = None
        self.learner: Any = None
        self.measured: Any = None
        self.best: Any = None

    def run(self) -> None:
        """All of it; a run that is finished is only shown."""
        checkpoint, total = self.folder.latest(), self.recipe.schedule.total_steps
        if checkpoint and int(checkpoint.name.removeprefix("step-")) >= total and self.session.has_summary():
            self.session.show_finished("raise schedule.total_steps to go on")
            return
        self.prepare()
        self.execute()
        self.summarise()

    def prepare(self) -> None:
        from align.evaluate import BestIterate
        from align.evaluate_robot import RobotEvaluator
        from align.loop import Parts
        from rewards.success.labeller import SuccessLabeller
        from rollouts.envs.group import EnvCollectorGroup

        recipe, session, path = self.recipe, self.session, self.folder.path
        session.say(f"environment {scene_name(recipe.environment)}")
        scene = parts.look_at(recipe)
        session.say("prior data")
        prior = parts.prior_episodes(recipe, path, session.say)
        instructions = parts.instructions(recipe, scene, prior)
        reward = None
        if not isinstance(recipe.reward, TruthReward):
            session.say(f"reward model ({recipe.reward.type})")
            reward = success_model(recipe, prior, path, session.say)
        labeller = SuccessLabeller(parts.label_config(recipe), ranker(recipe, prior, scene.tasks))
        labelled, _ = labeller.label(prior, 0)
        config = parts.policy_config(recipe, scene, instructions)
        mixer = parts.mixer(recipe, labelled, instructions, scene)
        tracker = session.tracker(
            recipe.schedule.total_steps,
            {"environment": scene_name(recipe.environment), "runs on": recipe.cluster.type},
        )
        session.quiet()
        self.cluster = connect_to(recipe.cluster, path / "logs")
        session.stack.callback(self.cluster.close)
        starting = f"{recipe.rollout.collectors} collector(s)" + (", the reward model" if lives_apart(recipe) else "")
        session.say(f"starting {starting} and the learner ({recipe.cluster.type})")
        if reward is not None and lives_apart(recipe):
            reward = hosted(recipe, reward, self.cluster)
        collectors = [
            host_collector(
                self.cluster,
                recipe.cluster,
                parts.collector_factory(recipe, config, instructions, reward, index),
                f"collector-{index}",
            )
            for index in range(recipe.rollout.collectors)
        ]
        acting, follow = parts.evaluated(recipe, config, instructions)
        session.stack.callback(acting.env.close)
        self.measured = RobotEvaluator(
            acting,
            parts.reset_free(recipe),
            episodes=recipe.evaluation.episodes,
            lives=recipe.evaluation.lives,
            episodes_per_life=recipe.evaluation.episodes_per_life,
            seed=recipe.seed,
            shoot=parts.camera(recipe, path / FILMS, acting, tracker),
        )
        self.best = BestIterate(self.measured, lambda _: self._save_policy(BEST), recipe.evaluation.best_by)
        states = mixer.offline.states() if recipe.environment.state else None
        self.learner = host_learner(
            self.cluster, recipe.cluster, parts.learner_factory(recipe, config, states, recipe.name)
        )
        session.stack.callback(end_learner, self.cluster, self.learner)
        collector = EnvCollectorGroup(collectors, [follow])
        self.parts = Parts(collector, labeller, mixer, self.learner, self.best, tracker)

    def execute(self) -> None:
        from align.build import looping

        start = looping.restore(self.parts, self.folder, self.cluster)
        # Collectors begin with what the learner holds, at the start as after a resume.
        self.parts.collector.load_weights(self.learner.weights())
        with self.parts.tracker:
            looping.run(self.parts, self.recipe.schedule, self.folder, self.cluster, start)
            self._save_policy(POLICY)

    def summarise(self) -> None:
        """The end of a run, for people and for programs."""
        from align.tracking.console import terminal_console
        from align.tracking.robot_report import RobotOutcome, plot_robot, summarise

        recipe, path = self.recipe, self.folder.path
        plot_robot(path, recipe.name)
        totals = parts.totals(path)
        summarise(
            RobotOutcome(
                recipe=self.session.command,
                folder=path,
                steps=recipe.schedule.total_steps,
                minutes=float(self.parts.tracker.state_dict()["elapsed_s"]) / 60,
                phases=self._phases(),
                next_steps={
                    "train longer": self.session.command_with(
                        {"schedule.total_steps": str(2 * recipe.schedule.total_steps)}
                    )
                },
                **totals,
            ),
            terminal_console(self.session.terminal),
        )

    def _phases(self) -> dict[str, tuple[int, dict[str, tuple[int, int]]]]:
        """What was measured at the end of each phase, where it was."""
        recipe, results = self.recipe, self.measured.results
        steps: dict[str, int | None] = {
            "imitation": parts.imitation_step(recipe),
            "offline": recipe.schedule.offline_steps or None,
            "online": recipe.schedule.total_steps,
            "best": self.best.step,
        }
        return {phase: (step, results[step]) for phase, step in steps.items() if step is not None and step in results}

    def _save_policy(self, name: str) -> None:
        from align.learners.robot import save_policy

        self.cluster.apply(self.learner, save_policy, str((self.folder.path / name).resolve()))
