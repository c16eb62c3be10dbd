"""``align episodes``."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from align.cli.command import command
from align.errors import UserError

if TYPE_CHECKING:
    from rollouts.envs.generate import Progress
    from rollouts.envs.types import Episode

app = typer.Typer(
    no_args_is_help=True,
    help="Episodes of robots on disk: scripted ones, what a folder holds, other formats in and out, films.",
)

FORMATS = {"polestar": "a store of episodes", "lerobot": "a LeRobotDataset", "minari": "a Minari data set"}
SourceName = Literal["policy", "demonstration", "failure", "prior"]
Episodes = Annotated[
    Path, typer.Argument(metavar="PATH", help="Episodes: a store of ours, a LeRobotDataset (v3) or a Minari data set.")
]
Camera = Annotated[
    str | None, typer.Option(help="Of a LeRobotDataset with several cameras, the one that becomes the image.")
]
Rescale = Annotated[
    bool, typer.Option("--rescale", help="Of a LeRobotDataset, bring actions into [-1, 1] by its own bounds.")
]


@app.command("generate")
@command
def generate_command(
    scene: Annotated[str, typer.Argument(help="metaworld:PAIR (window, drawer, door, door-lock, handle) or point.")],
    out: Annotated[Path, typer.Argument(help="The store's folder: new, or one that this command was stopped in.")],
    demonstrations: Annotated[int, typer.Option(help="Scripted successes of each task.")] = 5,
    failures: Annotated[int, typer.Option(help="Scripted failures of each task.")] = 5,
    noise: Annotated[float, typer.Option(help="Standard deviation of the noise on a script's actions.")] = 0.1,
    hold: Annotated[int, typer.Option(help="Decisions that a demonstration goes on after its first success.")] = 5,
    horizon: Annotated[int, typer.Option(help="Longest attempt, in decisions.")] = 60,
    image: Annotated[bool, typer.Option("--image/--no-image", help="Keep camera images.")] = False,
    image_size: Annotated[int, typer.Option(help="Their height and width, in pixels.", min=1)] = 84,
    repeat: Annotated[int, typer.Option(help="Simulator steps (12.5 ms each) of a decision.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Decides everything that is drawn.")] = 0,
    prior: Annotated[
        list[str] | None, typer.Option(metavar="SCENE", help="Another scene, for prior data; may be given again.")
    ] = None,
    prior_demonstrations: Annotated[int, typer.Option(help="Scripted successes of each task of those.")] = 10,
) -> int:
    """Write scripted demonstrations and failures, or go on where an earlier call was stopped."""
    with _user_errors():
        from rollouts.envs.generate import GenerateConfig, generate

        config = GenerateConfig(
            path=str(out),
            scene=scene,
            demonstrations=demonstrations,
            failures=failures,
            prior=tuple(prior or ()),
            prior_demonstrations=prior_demonstrations,
            horizon=horizon,
            noise=noise,
            hold=hold,
            image=image,
            image_size=image_size,
            repeat=repeat,
            seed=seed,
        )
        with _progress() as progress:
            generate(config, progress)
        print(_described(out), end="")
    return 0


@app.command("show")
@command
def show_command(path: Episodes, camera: Camera = None, rescale: Rescale = False) -> int:
    """Tell what a folder holds: format, observations, and episodes by task and source."""
    with _user_errors():
        print(_described(path, camera, rescale), end="")
    return 0


@app.command("import")
@command
def import_command(
    path: Annotated[Path, typer.Argument(help="A LeRobotDataset (v3) or a Minari data set.")],
    out: Annotated[Path, typer.Argument(help="The new folder, a store of ours.")],
    source: Annotated[SourceName | None, typer.Option(help="Who acted in it; prior unless it tells.")] = None,
    camera: Camera = None,
    rescale: Rescale = False,
    assume_success: Annotated[
        bool, typer.Option("--assume-success", help="Of a LeRobotDataset that does not tell: all episodes succeed.")
    ] = False,
    success_key: Annotated[
        str | None, typer.Option(metavar="INFO", help="Of a Minari data set, the info that tells success: success.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Of a Minari data set, what its task is called.")] = None,
    instruction: Annotated[str | None, typer.Option(help="Its words for a policy; the task's name by default.")] = None,
) -> int:
    """Read a LeRobotDataset or a Minari data set into a store; what we exported comes back as it was."""
    with _user_errors():
        from rollouts.envs.exchange import import_episodes
        from rollouts.envs.prior import Reading
        from rollouts.envs.types import Source, Task

        if instruction is not None and task is None:
            raise UserError("--instruction goes together with --task: give both, or the task alone")
        import_episodes(
            path,
            out,
            Reading(
                source=None if source is None else Source(source),
                task=None if task is None else Task(task, instruction or task),
                success_key=success_key,
                camera=camera,
                assume_success=assume_success,
                rescale=rescale,
            ),
        )
        print(f"wrote {_described(out)}", end="")
    return 0


@app.command("export")
@command
def export_command(
    path: Episodes,
    out: Annotated[Path, typer.Argument(help="The new folder; a Minari data set's is called NAME-v0.")],
    to: Annotated[Literal["minari", "lerobot"], typer.Option(help="The format.")],
    fps: Annotated[
        int | None,
        typer.Option(help="Decisions a second, for LeRobot; by default what the episodes tell.", min=1),
    ] = None,
    video: Annotated[
        bool, typer.Option("--video", help="For LeRobot, pictures as H.264, which loses detail; else PNG.")
    ] = False,
    camera: Camera = None,
    rescale: Rescale = False,
) -> int:
    """Write episodes as a Minari data set or a LeRobotDataset (v3)."""
    with _user_errors():
        from rollouts.envs.exchange import export_episodes
        from rollouts.envs.prior import Reading

        export_episodes(path, out, to, fps=fps, video=video, reading=Reading(camera=camera, rescale=rescale))
        if to == "minari":
            from rollouts.envs.minari import dataset_place

            root, dataset_id = dataset_place(out)
            print(f"wrote {out}: minari.load_dataset({dataset_id!r}) with MINARI_DATASETS_PATH={root}")
        else:
            from rollouts.envs.prior import episode_rate

            print(f"wrote {out}: a LeRobotDataset at {episode_rate(out):g} frames a second")
    return 0


@app.command("film")
@command
def film_command(
    path: Episodes,
    out: Annotated[Path, typer.Argument(help="The new folder.")],
    limit: Annotated[int | None, typer.Option(help="So many episodes at most.", min=1)] = None,
    source: Annotated[SourceName | None, typer.Option(help="Only episodes of this source.")] = None,
    task: Annotated[str | None, typer.Option(help="Only episodes of this task.")] = None,
    fps: Annotated[int, typer.Option(help="Frames a second.", min=1)] = 12,
    camera: Camera = None,
    rescale: Rescale = False,
) -> int:
    """Make a film (.mp4) and a strip of pictures (.png) of each episode that has images."""
    with _user_errors():
        from rollouts.envs.film import film_episodes
        from rollouts.envs.prior import Reading, open_episodes
        from rollouts.episodes.files import new_folder

        episodes = _with_images(path, open_episodes(path, Reading(camera=camera, rescale=rescale)))
        wanted = (e for e in episodes if source in (None, e.source) and task in (None, e.task.name))
        with new_folder(out) as scratch:
            count = film_episodes(islice(wanted, limit), scratch, fps)
            if not count:
                raise UserError(f"{path}: no such episodes in it; `align episodes show {path}` tells what is there")
        print(f"wrote {out}: films and strips of {count} episodes")
    return 0


def _described(path: Path, camera: str | None = None, rescale: bool = False) -> str:
    from rollouts.envs.exchange import describe_any
    from rollouts.envs.prior import Reading, episode_format, episode_rate

    card = describe_any(path, Reading(camera=camera, rescale=rescale)).markdown()
    rate = episode_rate(path)
    told = "" if rate is None else f", {rate:.3g} decisions a second"
    return f"{path}: {FORMATS[episode_format(path)]}{told}\n\n{card}"


def _with_images(path: Path, episodes: "Iterable[Episode]") -> "Iterator[Episode]":
    from rollouts.envs.types import IMAGE

    for episode in episodes:
        if IMAGE not in episode.observations:
            raise UserError(f"{path}: its episodes have no images to film; `align episodes generate` has --image")
        yield episode


@contextmanager
def _progress() -> "Iterator[Callable[[Progress], None]]":
    """A bar, or lines, for each scene of which there is something to do."""
    from rewards.serve.progress import ProgressBar

    bars: dict[str, ProgressBar] = {}
    done: dict[str, int] = {}

    def say(progress: "Progress") -> None:
        scene = progress.scene
        if progress.done == progress.found:
            return
        if scene not in bars:
            bars[scene], done[scene] = ProgressBar(scene, unit="episodes"), progress.found
            bars[scene].start(progress.total, progress.found)
        bars[scene].advance(progress.done - done[scene], 0)
        done[scene] = progress.done
        if progress.done == progress.total:
            bars[scene].close()

    try:
        yield say
    finally:
        for bar in bars.values():
            bar.close()


@contextmanager
def _user_errors() -> Iterator[None]:
    """Errors of episodes and scenes lose their traceback, and so does a package that is missing."""
    from rollouts.envs.api import EnvError
    from rollouts.episodes.files import EpisodeError

    try:
        yield
    except (EnvError, EpisodeError) as error:
        raise UserError(str(error)) from error
    except ModuleNotFoundError as error:
        raise UserError(
            f"episodes need the package {error.name}: pip install 'polestar-align[robot]' installs it"
        ) from error
