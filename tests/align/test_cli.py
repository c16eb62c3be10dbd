"""The command line: which code it ends with, what it prints, and that it starts from any Python."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from align.cli import main
from align.errors import UserError
from align.recipe import PreferenceRecipe, schema_text
from align.recipe.load import load

ROOT = Path(__file__).resolve().parents[2]
XPO = str(ROOT / "recipes" / "xpo.yaml")

Run = Callable[[PreferenceRecipe, Path, list[str]], int]


def plant(monkeypatch: pytest.MonkeyPatch, name: str, members: Mapping[str, object]) -> None:
    """Puts a module in the place of one that is imported when a command runs, so that nothing heavy starts."""
    module = ModuleType(name)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    package, _, leaf = name.rpartition(".")
    if package in sys.modules:
        monkeypatch.setattr(sys.modules[package], leaf, module, raising=False)


def plant_run(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    plant(monkeypatch, "align.build", {"run_recipe": run})


def test_check_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", XPO, "seed=3"]) == 0
    assert capsys.readouterr() == (f"OK xpo ({XPO})\n", "")


@pytest.mark.parametrize("command", ["check", "config", "run"])
def test_mistakes_go_to_stderr_one_a_line_and_exit_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, XPO, "a=1", "schedule.total_steps=x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        "override 'a=1'",
        "override 'schedule.total_steps=x'",
    ]


def test_config_prints_what_load_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", XPO, "schedule.total_steps=2"]) == 0
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load(resolved) == load(XPO, ["schedule.total_steps=2"])


def test_schema_goes_to_the_terminal_or_to_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["schema", "--out", "-"]) == 0
    assert capsys.readouterr().out == schema_text()
    assert main(["schema", "--out", str(tmp_path / "s.json")]) == 0
    assert (tmp_path / "s.json").read_text(encoding="utf-8") == schema_text()
    assert main(["schema", "--out", str(tmp_path / "no" / "s.json")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["run", XPO], [XPO]])
def test_both_doors_run_the_recipe(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[PreferenceRecipe, Path, list[str]]] = []

    def run(recipe: PreferenceRecipe, source: Path, overrides: list[str]) -> int:
        calls.append((recipe, source, overrides))
        return 7

    plant_run(monkeypatch, run)
    assert main([*words, "schedule.total_steps=2", "seed=5"]) == 7
    overrides = ["schedule.total_steps=2", "seed=5"]
    assert calls == [(load(XPO, overrides), Path(XPO), overrides)]


def test_errors_of_a_run_that_the_user_can_mend_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(recipe: PreferenceRecipe, source: Path, overrides: list[str]) -> int:
        raise UserError("first line", "second line")

    plant_run(monkeypatch, run)
    assert main([XPO]) == 2
    assert capsys.readouterr().err == "first line\nsecond line\n"


def test_ctrl_c_is_one_line_and_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(recipe: PreferenceRecipe, source: Path, overrides: list[str]) -> int:
        raise KeyboardInterrupt

    plant_run(monkeypatch, run)
    assert main([XPO]) == 130
    assert capsys.readouterr().err == "align: interrupted\n"


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(recipe: PreferenceRecipe, source: Path, overrides: list[str]) -> int:
        raise ZeroDivisionError

    plant_run(monkeypatch, run)
    with pytest.raises(ZeroDivisionError):
        main([XPO])


@pytest.mark.parametrize("words", [["chek", XPO], ["check"], ["run"], ["cluster", "sideways"], ["check", "--wrong"]])
def test_wrong_words_exit_2_with_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "Usage: align" in capsys.readouterr().err


def test_bench_step_measures_its_own_recipe_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[PreferenceRecipe, list[str]]] = []

    def measure(recipe: PreferenceRecipe, source: Path, overrides: list[str]) -> int:
        measured.append((recipe, overrides))
        return 0

    plant(monkeypatch, "align.bench", {})
    plant(monkeypatch, "align.bench.step", {"main": measure})
    assert main(["bench", "step"]) == 0
    assert main(["bench", "step", XPO, "seed=4"]) == 0
    bench = Path(XPO).parent / "bench" / "step.yaml"
    assert measured == [(load(bench), []), (load(XPO, ["seed=4"]), ["seed=4"])]


class HeadError(Exception):
    """Stands for ``cluster.head.HeadError``."""


def test_cluster_commands_reach_the_head_in_the_repository(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def up(root: Path, port: int, dashboard_port: int, num_cpus: int | None) -> str:
        return f"up {root} {port} {dashboard_port} {num_cpus}"

    def down(root: Path) -> str:
        return f"down {root}"

    def status(root: Path) -> str:
        raise HeadError("no head runs: start one with `align cluster up`")

    plant(monkeypatch, "cluster.head", {"up": up, "down": down, "status": status, "HeadError": HeadError})
    assert main(["cluster", "up", "--port", "7000", "--num-cpus", "2"]) == 0
    assert main(["cluster", "down"]) == 0
    assert main(["cluster", "status"]) == 2
    out, err = capsys.readouterr()
    assert out == f"up {ROOT} 7000 8265 2\ndown {ROOT}\n"
    assert err == "no head runs: start one with `align cluster up`\n"


# Processes of their own ----------------------------------------------------------------------------------------------


def python(*words: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_python_dash_m_and_the_recipe_itself_are_the_command_line() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for words in (["align", "run"], [sys.executable, "-m", "align"], []):
        done = subprocess.run(
            [*words, "./recipes/xpo.yaml", "a=1"],
            cwd=ROOT,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("override 'a=1': unknown key 'a'")
        assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "align", "config", XPO], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_module_imports_with_the_standard_library_alone() -> None:
    code = f"import sys; sys.path.append({str(ROOT)!r}); import align.__main__; print(*sys.modules)"
    done = python("-S", "-I", "-c", code)
    assert done.returncode == 0, done.stderr
    tops = {name.partition(".")[0] for name in done.stdout.split()}
    assert "align" in tops
    assert tops - sys.stdlib_module_names <= {"align", "__main__"}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A copy of the package's entry in a folder where no dependency is installed."""
    (tmp_path / "align").mkdir()
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(ROOT / "align" / name, tmp_path / "align" / name)
    return tmp_path


def test_without_an_environment_one_line_says_how_to_make_it(bare: Path) -> None:
    done = python("-S", "-m", "align", "check", "x.yaml", cwd=bare)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "align: pydantic is not installed; run ./setup.sh (or make xpo) first\n"


def test_a_bare_python_moves_on_to_the_environment_with_its_programs_first_on_path(bare: Path) -> None:
    programs = bare / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$PATH" "$@"\n', encoding="utf-8")
    (programs / "python").chmod(0o755)
    done = python("-S", "-m", "align", "r.yaml", "a=b c", cwd=bare)
    path, *words = done.stdout.splitlines()
    assert path.startswith(f"{programs}{os.pathsep}")
    assert words == ["-m", "align", "r.yaml", "a=b c"]


def test_a_broken_environment_does_not_call_itself_for_ever(bare: Path) -> None:
    programs = bare / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n', encoding="utf-8")
    (programs / "python").chmod(0o755)
    done = python("-S", "-m", "align", "r.yaml", cwd=bare)
    assert done.returncode == 2
    assert "run ./setup.sh" in done.stderr
