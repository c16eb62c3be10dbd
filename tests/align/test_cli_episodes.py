"""``align episodes`` on the point scene: each command does what it says, or says in one line why not."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import pytest

pytest.importorskip("minari")

import rollouts.envs.film
from align.cli import main
from rollouts.envs.make import decision_rate
from rollouts.envs.types import Episode
from rollouts.episodes.store import EpisodeWriter, read_episodes, write_episodes
from tests.rollouts.episodes.made import foreign_lerobot, same

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--demonstrations", "1", "--failures", "1", "--horizon", "40"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations and two failures with small pictures; tests must not write to it."""
    folder = tmp_path_factory.mktemp("episodes") / "store"
    assert main(["episodes", "generate", "point", str(folder), *SMALL, "--image", "--image-size", "12"]) == 0
    return folder


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without pictures."""
    folder = tmp_path_factory.mktemp("episodes") / "blind"
    assert main(["episodes", "generate", "point", str(folder), *SMALL]) == 0
    return folder


def run(*words: str | Path) -> int:
    return main(["episodes", *map(str, words)])


def test_generate_writes_what_is_asked_for_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "point", tmp_path / "a", *SMALL, "--hold", "2", "--seed", "3") == 0
    out, err = capsys.readouterr()
    assert err.startswith("point: 4 of 4 episodes, ") and len(err.splitlines()) == 1
    assert out.startswith(f"{tmp_path / 'a'}: a store of episodes\n\n4 episodes, ")
    assert "| back | take the block to the left | failure | 1 | 40 |" in out
    first, *_ = read_episodes(tmp_path / "a")
    # 2 decisions after the first success.
    assert first.success.tolist()[-4:] == [False, True, True, True]
    settings = json.loads((tmp_path / "a" / "generated.json").read_text())
    wanted = {"scene": "point", "noise": 0.1, "seed": 3, "hold": 2, "horizon": 40, "image": False, "repeat": 3}
    assert {key: settings[key] for key in wanted} == wanted
    # Again, there is nothing left to do.
    assert run("generate", "point", tmp_path / "a", *SMALL, "--hold", "2", "--seed", "3") == 0
    assert capsys.readouterr() == (out, "")


def test_generate_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "point", str(tmp_path / "a"), "--demonstrations", "10", "--failures", "0"]
    write = EpisodeWriter.write

    def stop(self: EpisodeWriter, episode: Episode) -> None:
        if episode.id.endswith("0018"):
            raise KeyboardInterrupt
        write(self, episode)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeWriter, "write", stop)
        assert run(*words) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "align: interrupted"
    assert len(list(read_episodes(tmp_path / "a"))) == 16
    assert run(*words) == 0
    assert "point: going on after 16 of 20 episodes" in capsys.readouterr().err
    words[2] = str(tmp_path / "whole")
    assert run(*words) == 0
    for file in ("store.json", "shards/00000.parquet", "shards/00001.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize(("to", "fps"), [("lerobot", ["--fps", "10"]), ("minari", [])])
def test_what_goes_out_comes_back_bit_for_bit(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, fps: list[str]
) -> None:
    out, back = tmp_path / "robot" / "point-v0", tmp_path / "back"
    assert run("export", store, out, "--to", to, *fps) == 0
    told = capsys.readouterr().out
    if to == "lerobot":
        assert told == f"wrote {out}: a LeRobotDataset at 10 frames a second\n"
    else:
        assert told == f"wrote {out}: minari.load_dataset('point-v0') with MINARI_DATASETS_PATH={tmp_path / 'robot'}\n"
    assert run("import", out, back) == 0
    rate = ", 10 decisions a second" if fps else ""
    assert capsys.readouterr().out.startswith(f"wrote {back}: a store of episodes{rate}\n\n4 episodes, ")
    assert all(same(a, b) for a, b in zip(read_episodes(store), read_episodes(back), strict=True))


def test_minari_finds_what_was_exported(blind: Path, tmp_path: Path) -> None:
    assert run("export", blind, tmp_path / "point-v0", "--to", "minari") == 0
    code = "import minari; print(minari.load_dataset('point-v0').total_episodes)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MINARI_DATASETS_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "4\n"


def test_the_episodes_rate_is_the_default(blind: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    # A point has no time. Three of Meta-World's simulator steps of 12.5 ms are 37.5 ms.
    write_episodes(copy, read_episodes(blind), rate=decision_rate("metaworld:window", 3))
    assert run("show", copy) == 0
    assert capsys.readouterr().out.startswith(f"{copy}: a store of episodes, 26.7 decisions a second\n")
    assert run("export", copy, tmp_path / "out", "--to", "lerobot") == 0
    assert capsys.readouterr().out.endswith("at 27 frames a second\n")


def test_show_tells_of_every_format(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", store, tmp_path / "l", "--to", "lerobot", "--fps", "5") == 0
    assert run("export", store, tmp_path / "m-v0", "--to", "minari") == 0
    capsys.readouterr()
    tables = []
    for path, format in (
        (store, "a store of episodes"),
        (tmp_path / "l", "a LeRobotDataset, 5 decisions a second"),
        (tmp_path / "m-v0", "a Minari data set"),
    ):
        assert run("show", path) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{path}: {format}"
        assert lines[4].startswith("Observations `image` uint8[12x12x3]")
        assert lines[4].endswith("`state` float32[8]; actions [2].")
        tables.append(lines[6:])
    assert tables[0] == tables[1] == tables[2] and len(tables[0]) == 6


def test_films_of_chosen_episodes(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("film", store, tmp_path / "f", "--source", "failure", "--task", "back", "--fps", "5") == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'f'}: films and strips of 1 episodes\n"
    film = tmp_path / "f" / "0000-point-failure-0001.mp4"
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == [film.name, film.with_suffix(".png").name]
    # 41 pictures, and the last one for another second.
    assert len(iio.imread(film)) == 46
    assert run("film", store, tmp_path / "g", "--limit", "2") == 0
    assert len(list((tmp_path / "g").iterdir())) == 4


def test_a_dataset_of_others_comes_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = foreign_lerobot(tmp_path / "bridge")
    for words, message in (
        ([], "name the camera that becomes 'image': it has front, wrist"),
        (["--camera", "front"], "actions of episode 0 lie outside [-1, 1]; rescale them"),
        (["--task", "fold"], "leave out task, which says nothing about episodes in the format 'lerobot'"),
        (["--instruction", "fold it"], "--instruction goes together with --task"),
    ):
        assert run("import", foreign, tmp_path / "out", *words) == 2
        err = capsys.readouterr().err
        assert message in err and len(err.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["bridge"]
    chosen = ["--camera", "front", "--rescale"]
    assert run("show", foreign, *chosen) == 0
    assert "| fold the cloth | fold the cloth | prior | 1 | 2 |" in capsys.readouterr().out
    assert run("import", foreign, tmp_path / "out", *chosen, "--source", "demonstration", "--assume-success") == 0
    assert "| fold the cloth | fold the cloth | demonstration | 1 | 2 | 2 to 2, median 2 | 1.00 |" in (
        capsys.readouterr().out
    )


ERRORS = [
    (["show", "{tmp}/none"], "{tmp}/none: there is no such folder: give a store of ours, a LeRobotDataset or a Minari"),
    (["show", "{tmp}"], "{tmp}: no episodes there: give a store of ours, a LeRobotDataset or a Minari data set"),
    (["show", "{store}", "--camera", "front"], "{store}: leave out camera, which says nothing about episodes in the"),
    (["import", "{tmp}/none", "{tmp}/out"], "{tmp}/none: there is no such folder"),
    (["import", "{store}", "{tmp}/out"], "{store}: is a store of ours already; copy the folder"),
    (["export", "{tmp}", "{tmp}/out", "--to", "minari"], "{tmp}: no episodes there"),
    (["export", "{store}", "{tmp}/out", "--to", "minari"], "'out' does not name a Minari dataset: write (NAMESPACE/)"),
    (["export", "{store}", "{tmp}/out-v0", "--to", "minari", "--video"], "{tmp}/out-v0: leave out fps and video"),
    (["export", "{store}", "{tmp}/out", "--to", "lerobot"], "{store}: does not tell how many decisions"),
    (["export", "{store}", "{store}", "--to", "lerobot", "--fps", "9"], "{store}: exists already"),
    (["film", "{store}", "{store}"], "{store}: exists already"),
    (
        ["film", "{store}", "{tmp}/out", "--task", "fly"],
        "{store}: no such episodes in it; `align episodes show",
    ),
    (["film", "{blind}", "{tmp}/out"], "{blind}: its episodes have no images to film"),
    (["film", "{tmp}/none", "{tmp}/out"], "{tmp}/none: there is no such folder"),
    (["generate", "moon", "{tmp}/out"], "unknown environment 'moon'"),
    (["generate", "gym:CartPole-v1", "{tmp}/out", "--image"], "gym:CartPole-v1 has no pictures here"),
    (["generate", "point", "{tmp}/out", "--failures", "-1"], "failures must be at least 0"),
    (["generate", "point", "{store}"], "{store}: was generated with "),
]


@pytest.mark.parametrize(("words", "message"), ERRORS, ids=[" ".join(words) for words, _ in ERRORS])
def test_mistakes_are_one_line_and_leave_nothing(
    store: Path, blind: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    names = {"tmp": tmp_path, "store": store, "blind": blind}
    before = sorted(store.parent.iterdir())
    assert run(*(word.format(**names) for word in words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(message.format(**names)) and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [] and sorted(store.parent.iterdir()) == before


def test_an_output_that_exists_is_never_touched(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", store, tmp_path / "l", "--to", "lerobot", "--fps", "5") == 0
    (tmp_path / "mine-v0").mkdir()
    (tmp_path / "mine-v0" / "thesis.txt").write_text("mine")
    capsys.readouterr()
    for words in (
        ["generate", "point"],
        ["import", tmp_path / "l"],
        ["export", store, "--to", "lerobot", "--fps", "5"],
        ["export", store, "--to", "minari"],
        ["film", store],
    ):
        assert run(*words[:2], tmp_path / "mine-v0", *words[2:]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"{tmp_path / 'mine-v0'}: ") and len(err.splitlines()) == 1
    assert [(p.name, p.read_text()) for p in (tmp_path / "mine-v0").iterdir()] == [("thesis.txt", "mine")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l", "mine-v0"]


@pytest.mark.parametrize(
    "words",
    [
        ["import", "{other}", "{tmp}/out"],
        ["export", "{store}", "{tmp}/out", "--to", "lerobot", "--fps", "5", "--video"],
        ["export", "{store}", "{tmp}/out-v0", "--to", "minari"],
        ["film", "{store}", "{tmp}/out"],
    ],
    ids=lambda words: words[0],
)
def test_ctrl_c_leaves_nothing_behind(
    store: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    other = tmp_path_factory.mktemp("other") / "l"
    assert run("export", store, other, "--to", "lerobot", "--fps", "5") == 0

    def stopped(*_: object, **__: object) -> Iterator[Episode]:
        yield from list(read_episodes(store))[:2]
        raise KeyboardInterrupt

    for module in ("rollouts.envs.exchange", "rollouts.envs.prior"):
        monkeypatch.setattr(f"{module}.open_episodes", stopped)
    capsys.readouterr()
    assert run(*(word.format(store=store, tmp=tmp_path, other=other) for word in words)) == 130
    assert capsys.readouterr() == ("", "align: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_named(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_film(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'imageio'", name="imageio")

    monkeypatch.setattr(rollouts.envs.film, "write_film", no_film)
    assert run("film", store, tmp_path / "out") == 2
    assert capsys.readouterr().err == (
        "episodes need the package imageio: pip install 'polestar-align[robot]' installs it\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from align.cli import main; main(['episodes', '--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "generate" in done.stdout
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & {"torch", "numpy", "gymnasium", "mujoco", "minari", "pyarrow", "rollouts", "rewards"}
