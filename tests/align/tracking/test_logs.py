import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from align.tracking.logs import ENVIRONMENT, LOGGERS, quiet_third_party, redirect_fds

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if not os.environ[name]:
            monkeypatch.delenv(name)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    saved = [(logger, list(logger.handlers), logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, handlers, propagate, level in saved:
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
    logging.captureWarnings(False)


def test_logs_and_warnings_go_to_the_file_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("vllm").addHandler(logging.StreamHandler(sys.stderr))
    path = quiet_third_party(tmp_path / "logs")
    logging.getLogger("vllm.engine").info("engine is up")
    logging.getLogger("ray").warning("a worker died")
    logging.getLogger("httpx").debug("too much detail")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("an old name", UserWarning, stacklevel=1)
    text = path.read_text()
    assert path == tmp_path / "logs" / "driver.log"
    assert "INFO vllm.engine: engine is up" in text
    assert "WARNING ray: a worker died" in text
    assert "UserWarning: an old name" in text
    assert "too much detail" not in text
    assert capfd.readouterr() == ("", "")


def test_calling_twice_logs_once_and_removes_late_handlers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quiet_third_party(tmp_path)
    logging.getLogger("transformers").addHandler(logging.StreamHandler(sys.stderr))
    child = logging.getLogger("torch._dynamo.late")
    child.addHandler(logging.StreamHandler(sys.stderr))
    child.propagate = False
    path = quiet_third_party(tmp_path)
    logging.getLogger("transformers.models").warning("once")
    child.warning("child")
    assert path.read_text().count("once") == 1
    assert path.read_text().count("child") == 1
    assert capfd.readouterr() == ("", "")


def test_a_second_run_logs_to_its_own_folder(tmp_path: Path) -> None:
    first, second = quiet_third_party(tmp_path / "a"), quiet_third_party(tmp_path / "b")
    logging.getLogger("ray").info("hello")
    assert not first.exists()
    assert "hello" in second.read_text()


def test_the_environments_own_choices_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "0")
    quiet_third_party(tmp_path)
    assert os.environ["TQDM_DISABLE"] == "0"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


# os.write and a child stand for the C library: neither knows of sys.stdout.
SCRIPT = """
import os, subprocess, sys
from pathlib import Path
from align.tracking.logs import redirect_fds

print("before", end=" ")
try:
    with redirect_fds(Path(sys.argv[1])) as terminal:
        os.write(1, b"C stdout\\n")
        os.write(2, b"C stderr\\n")
        subprocess.run(["sh", "-c", "echo child"])
        print("held back", end="\\n")
        print("for people", file=terminal)
        if sys.argv[2] == "fail":
            raise RuntimeError("boom")
except RuntimeError:
    print("caught")
print("after", len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.parametrize("end", ["well", "fail"])
def test_descriptors_lead_to_the_file_and_back(tmp_path: Path, end: str) -> None:
    path = tmp_path / "logs" / "noise.log"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), end],
        capture_output=True, text=True, timeout=60, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert path.read_text() == "C stdout\nC stderr\nchild\nheld back\n"
    expected = "before for people\n" + ("caught\n" if end == "fail" else "") + "after "
    assert done.stdout.startswith(expected)
    # Standard input, output, error and the listing itself: no copy of a descriptor is left open.
    assert done.stdout.removeprefix(expected).strip() == "4"
    assert done.stderr == ""


def test_a_log_that_cannot_be_opened_changes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(IsADirectoryError), redirect_fds(tmp_path):
        raise AssertionError("never entered")
    os.write(1, b"still here")
    assert capfd.readouterr().out == "still here"
