"""A program of somebody else ends within its limits, with all that it has started, however it or its caller ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from processes_of import marked

from monai_unet_app.supervisor import MOST_LOG_BYTES, Ended, NotIsolatedError, Order, can_isolate, supervise

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has what it needs")
WITHOUT = "echo 0 > /proc/sys/user/max_user_namespaces; exec "
"""In a user namespace: from here on the system refuses them."""


@pytest.fixture
def mark() -> Iterator[str]:
    """A word that only processes of this test have among their arguments; they are ended."""
    word = f"mark-{uuid4().hex}"
    yield word
    for pid in marked(word):
        os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def order(folder: Path, *words: str, **limits: object) -> Order:
    (folder / "work").mkdir()
    environment = {"PATH": os.environ["PATH"], "ONLY": "this"}
    usual = {"seconds": 60.0, "memory_bytes": 4e9, "disk_bytes": 1e8}
    return Order(words, str(folder / "work"), environment, str(folder / "log"), **(usual | limits))


def python(text: str) -> tuple[str, str, str]:
    return sys.executable, "-c", text


def printed(folder: Path) -> str:
    return (folder / "log").read_text()


def test_it_runs_in_its_folder_with_its_environment_and_gives_its_code(tmp_path: Path) -> None:
    text = "import os, sys; print(os.getcwd(), sorted(os.environ), sys.stdin.read()); open('made', 'w').write('x'); sys.exit(7)"
    ended = supervise(order(tmp_path, *python(text)))
    assert (ended.how, ended.code) == ("done", 7)
    assert str(tmp_path / "work") in printed(tmp_path)
    assert "'ONLY', 'PATH'" in printed(tmp_path)
    assert (tmp_path / "work/made").read_text() == "x"


def test_words_are_no_shell(tmp_path: Path) -> None:
    supervise(order(tmp_path, "echo", "$ONLY; touch made", "*"))
    assert printed(tmp_path) == "$ONLY; touch made *\n"


def test_a_program_that_is_not_there_is_said_to_be_absent(tmp_path: Path) -> None:
    assert supervise(order(tmp_path, "no-such-program-anywhere")).how == "absent"


@pytest.mark.skipif(not can_isolate(), reason="this system refuses namespaces")
def test_there_is_loopback_and_no_other_network_not_even_that_of_the_machine(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as outside:
        port = outside.getsockname()[1]
        text = (
            "import socket\n"
            "own = socket.create_server(('127.0.0.1', 0))\n"
            "socket.create_connection(own.getsockname(), 5).close()\n"
            "print('loopback')\n"
            f"print(socket.socket().connect_ex(('127.0.0.1', {port})) != 0)\n"
            "print(open('/proc/self/net/dev').read().count(':'))"
        )
        ended = supervise(order(tmp_path, *python(text), isolated=True))
    assert ended.isolated
    assert printed(tmp_path).split() == ["loopback", "True", "1"]


@pytest.mark.parametrize(
    ("text", "limits", "how"),
    [
        ("import time; time.sleep(60)", {"seconds": 1.0}, "time"),
        ("held = b'x' * 600_000_000; import time; time.sleep(60)", {"memory_bytes": 5e8}, "memory"),
        ("open('large', 'wb').write(b'x' * 30_000_000); import time; time.sleep(60)", {"disk_bytes": 2e7}, "disk"),
        ("while True: print('x' * 10_000)", {"seconds": 2.0}, "time"),
    ],
)
def test_a_broken_limit_ends_it_with_its_children(
    tmp_path: Path, mark: str, text: str, limits: dict[str, float], how: str
) -> None:
    begin = time.monotonic()
    child = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)', '{mark}'])"
    )
    ended = supervise(order(tmp_path, *python(f"{child}\n{text}"), **limits))
    assert (ended.how, ended.code) == (how, 137)
    assert time.monotonic() - begin < 30
    assert not marked(mark)
    assert (tmp_path / "log").stat().st_size <= MOST_LOG_BYTES


LEAVER = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp(sys.executable, [sys.executable, "-c", "import time; time.sleep(300)", {mark!r}])
    os._exit(0)
time.sleep(1)
"""


def test_a_child_that_has_left_its_session_ends_with_the_program(tmp_path: Path, mark: str) -> None:
    ended = supervise(order(tmp_path, *python(LEAVER.format(mark=mark))))
    assert (ended.how, ended.code) == ("done", 0)
    assert not marked(mark)


def calling(folder: Path, mark: str) -> list[str]:
    """A process that has a program supervised."""
    (folder / "work").mkdir(parents=True)
    text = (
        "import sys; from monai_unet_app.supervisor import *\n"
        f"words = [sys.executable, '-c', {LEAVER.format(mark=mark) + 'time.sleep(300)'!r}, '{mark}']\n"
        f"print(supervise(Order(words, {str(folder / 'work')!r}, {{}}, {str(folder / 'log')!r}, 30.0, 4e9, 1e8)))"
    )
    return [sys.executable, "-c", text]


@pytest.mark.parametrize("killed", ["caller", "supervisor"])
def test_nothing_is_left_when_its_caller_or_the_supervisor_is_killed(tmp_path: Path, mark: str, killed: str) -> None:
    if killed == "supervisor" and not can_isolate():
        pytest.skip("without namespaces this is what doctor says")
    caller = subprocess.Popen(calling(tmp_path, mark), stderr=subprocess.PIPE, text=True)
    assert until(lambda: len(marked(mark)) >= 3)  # the caller, the program, and the child that left
    if killed == "caller":
        caller.kill()
    else:
        (child,) = Path(f"/proc/{caller.pid}/task/{caller.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
    _, said = caller.communicate(timeout=30)
    assert until(lambda: not marked(mark))
    assert killed == "caller" or "the supervisor of the program was ended" in said


def test_where_the_system_refuses_namespaces_children_are_swept(tmp_path: Path, mark: str) -> None:
    if not can_isolate():
        pytest.skip("all tests here are of that")
    text = (
        "import sys; from monai_unet_app.supervisor import *\n"
        f"words = [sys.executable, '-c', {LEAVER.format(mark=mark)!r}, '{mark}']\n"
        f"print(supervise(Order(words, {str(tmp_path)!r}, {{}}, {str(tmp_path / 'log')!r}, 30.0, 4e9, 1e8)))\n"
        f"supervise(Order(words, {str(tmp_path)!r}, {{}}, {str(tmp_path / 'log')!r}, 30.0, 4e9, 1e8, isolated=True))"
    )
    command = ["unshare", "-U", "-r", "sh", "-c", WITHOUT + '"$@"', "sh", sys.executable, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "how='done', code=0" in done.stdout, done.stderr
    assert "isolated=False" in done.stdout
    assert NotIsolatedError.__name__ in done.stderr
    assert until(lambda: not marked(mark), 2)


def test_peaks_are_told(tmp_path: Path) -> None:
    text = "held = b'x' * 200_000_000; open('large', 'wb').write(held[:10_000_000]); import time; time.sleep(2)"
    ended = supervise(order(tmp_path, *python(text)))
    assert isinstance(ended, Ended)
    assert 2e8 < ended.peak_memory_bytes < 4e8
    assert 1e7 <= ended.peak_disk_bytes < 2e7
