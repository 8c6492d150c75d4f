"""Pieces of work in processes of their own: at the same time, in order, failing, killed, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from monai_unet_app.errors import AppError, InputRefusedError
from monai_unet_app.processes import Send, Work, run_in_processes
from monai_unet_app.service.child_processes import run_verb

PATIENCE_S = 90.0  # a busy machine takes half a minute for four processes


def wait_for(what: Callable[[], bool]) -> bool:
    """Whether it came true in time."""
    end = time.monotonic() + PATIENCE_S
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    return what()


def meet(folder: Path, own: str, other: str, send: Send) -> None:
    """Ends when another process has come; alone it would wait in vain."""
    (folder / own).touch()
    send({"met": wait_for((folder / other).exists)})


def name_parts(send: Send) -> None:
    """Prints and sends."""
    print("one\ntwo ·", end="")
    print(" three", file=sys.stderr)
    os.write(1, b"native code\n")
    send((3, 4, os.getpid()))
    send(list(sys.argv))


def refuse(folder: Path, error: Exception, send: Send) -> None:
    """Fails once the other process runs."""
    wait_for((folder / "running").exists)
    raise error


def go_on(folder: Path, send: Send) -> None:
    """Ends some time after the other has failed."""
    (folder / "running").touch()
    wait_for((folder / "failed").exists)
    (folder / "ended").touch()


def die(send: Send) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_with_a_child(folder: Path, send: Send) -> None:
    """Starts a process of its own, as a loader of batches does, and never ends."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    part = folder / f"part_{os.getpid()}"  # its twin writes at the same time
    part.write_text(f"{os.getpid()} {child.pid}")
    part.rename(folder / f"pids_{os.getpid()}")
    time.sleep(600)


def run(work: dict[str, Work], at_once: int = 2) -> list[tuple[str, Any]]:
    heard: list[tuple[str, Any]] = []
    run_in_processes(work, at_once, lambda name, message: heard.append((name, message)))
    return heard


def test_two_run_at_the_same_time_in_processes_of_their_own(tmp_path: Path) -> None:
    heard = run({"a": partial(meet, tmp_path, "a", "b"), "b": partial(meet, tmp_path, "b", "a")})
    assert sorted(entry for entry in heard if entry[1]) == [("a", {"met": True}), ("b", {"met": True})]
    assert sorted(name for name, message in heard if message is None) == ["a", "b"]


def test_messages_come_in_their_order_and_lines_are_whole() -> None:
    heard = run({"first": name_parts, "second": name_parts}, 1)
    assert [name for name, _ in heard] == ["first"] * 5 + ["second"] * 5  # the next one begins when one ends
    for lines in (heard[:5], heard[5:]):
        assert [message for _, message in lines[:2]] == ["one", "two · three"]
        assert lines[2][1][:2] == (3, 4)
        assert lines[3][1] == sys.argv
    assert len({heard[2][1][2], heard[7][1][2], os.getpid()}) == 3


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (InputRefusedError("no case is left"), InputRefusedError, "fold 1: no case is left"),
        (OSError(28, "No space left on device", "x.pt"), OSError, r"fold 1: No space left on device: 'x.pt'"),
        (RuntimeError("out of memory"), AppError, "fold 1: RuntimeError: out of memory"),
    ],
)
def test_when_one_fails_the_others_go_on_and_none_is_begun(
    tmp_path: Path, error: Exception, kind: type[Exception], text: str
) -> None:
    heard: list[tuple[str, Any]] = []

    def hear(name: str, message: Any) -> None:
        heard.append((name, message))
        if isinstance(message, Exception):
            (tmp_path / "failed").touch()

    work = {"fold 0": partial(go_on, tmp_path), "fold 1": partial(refuse, tmp_path, error), "fold 2": name_parts}
    with pytest.raises(kind, match=text) as raised:
        run_in_processes(work, 2, hear)
    assert type(raised.value) is kind
    assert (tmp_path / "ended").exists()
    assert {name for name, _ in heard} == {"fold 0", "fold 1"}
    traceback = [message for name, message in heard if isinstance(message, str)]
    assert bool(traceback) == isinstance(error, RuntimeError)  # of a fault, not of a refusal


def test_a_process_that_is_killed_is_no_success() -> None:
    with pytest.raises(AppError, match=r"^fold 3: its process ended by signal 9; .* run the same command again$"):
        run({"fold 3": die})


PARENT = """
import signal
import sys
from functools import partial
from pathlib import Path
from test_processes import run, wait_with_a_child
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
work = partial(wait_with_a_child, Path(sys.argv[1]))
run({"a": work, "b": work})
"""


def pids_in(folder: Path) -> list[int]:
    return [int(pid) for file in folder.glob("pids_*") for pid in file.read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_parent(tmp_path: Path, sign: signal.Signals) -> None:
    paths = os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert wait_for(lambda: len(pids_in(tmp_path)) == 4)
        assert all(map(is_alive, pids_in(tmp_path)))
        parent.send_signal(sign)
        assert parent.wait(PATIENCE_S) == -sign
        assert wait_for(lambda: not any(map(is_alive, pids_in(tmp_path))))
    finally:
        parent.kill()
        parent.wait()
        for pid in filter(is_alive, pids_in(tmp_path)):
            os.kill(pid, signal.SIGKILL)


ONCE = """
import gc
from monai_unet_app.processes import imports_for_good
assert gc.get_freeze_count() == 0
try:
    with imports_for_good():
        assert not gc.isenabled()
        import json.no_such_module
except ImportError:
    pass
known = gc.get_freeze_count()
more = [[] for _ in range(10**5)]
with imports_for_good():
    pass
assert 0 < known == gc.get_freeze_count(), "later objects are looked through"
assert gc.isenabled()
"""


def test_nothing_in_the_current_folder_runs_as_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("json", "torch", "numpy"):
        (tmp_path / f"{module}.py").write_text("open('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    assert json.loads(run_verb(["doctor", "--bundles", "--json"], PATIENCE_S))["bundles"]
    heard: list[object] = []
    run_in_processes({"one": name_parts}, 1, lambda name, said: heard.append(said))
    assert heard
    assert not (tmp_path / "ran").exists()


def test_what_a_program_imports_first_is_kept_for_good_and_nothing_later() -> None:
    done = subprocess.run([sys.executable, "-c", ONCE], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
