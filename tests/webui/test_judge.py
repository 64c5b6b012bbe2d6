"""Judging in a child process, with real ones: some answer, others die, hang, or talk nonsense."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from crdiff_ext.errors import CRDiffError
from crdiff_ext.webui.child import Interrupted
from crdiff_ext.webui.judge import Judge

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import base64, io, json, os, sys, time
from PIL import Image

print("loading", file=sys.stderr, flush=True)
say = lambda text: print(text, flush=True)
BEFORE
say(json.dumps({"ready": True}))
for line in sys.stdin:
    asked = json.loads(line)
    images = [Image.open(io.BytesIO(base64.b64decode(one))) for one in asked["images"]]
    scores = [image.getpixel((0, 0))[0] + len(asked["prompt"]) for image in images]
    INSTEAD
    say(json.dumps({"id": asked["id"], "scores": scores}))
"""
HANG = "time.sleep(100)"
DIE = "print('out of luck', file=sys.stderr, flush=True); sys.exit(3)"


def red(value: int, size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new("RGB", size, (value, 0, 0))


def source(before: str = "", instead: str = "") -> str:
    return CHILD.replace("BEFORE", before).replace("INSTEAD", instead)


Maker = Callable[..., Judge]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    made = []

    def start(before: str = "", instead: str = "", seconds: float = 5.0) -> Judge:
        command = [sys.executable, "-c", source(before, instead)]
        made.append(Judge("test", command, seconds, tmp_path))
        return made[-1]

    yield start
    for judge in made:
        judge.close()


def is_gone(pid: int) -> bool:
    """No such process, and no zombie of it either."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    limit = time.monotonic() + seconds
    while not true() and time.monotonic() < limit:
        time.sleep(0.02)
    return true()


def test_scores_in_order_from_one_child(make: Maker) -> None:
    judge = make()
    assert judge.pid is None  # on demand
    assert judge.scores("abc", []) == []
    assert judge.pid is None
    assert judge.scores("abc", [red(9), red(1), red(200).convert("RGBA")]) == [12.0, 4.0, 203.0]
    pid = judge.pid
    assert pid is not None
    assert judge.scores("", [red(7)]) == [7.0]
    assert judge.pid == pid
    judge.stop()
    assert is_gone(pid)
    judge.stop()
    assert judge.scores("", [red(8)]) == [8.0]
    assert judge.pid not in (None, pid)


def test_a_closed_judge_starts_nothing(make: Maker) -> None:
    judge = make()
    judge.scores("", [red(1)])
    judge.close()
    with pytest.raises(CRDiffError, match="settings have changed"):
        judge.scores("", [red(1)])
    assert judge.pid is None


ONCE = "\n    if not os.path.exists('seen'):\n        open('seen', 'w').close(); "


@pytest.mark.parametrize("place", ["before", "instead"])
def test_one_that_dies_is_told_and_replaced(make: Maker, place: str, caplog) -> None:
    text = ONCE.replace("\n    ", "\n") if place == "before" else ONCE
    judge = make(**{place: f"{text}{DIE}"})
    with (
        caplog.at_level(logging.WARNING, logger="crdiff"),
        pytest.raises(CRDiffError, match=r"died \(exit code 3\)"),
    ):
        judge.scores("", [red(1)])
    assert "out of luck" in caplog.text
    assert judge.pid is None
    assert judge.scores("", [red(5)]) == [5.0]


def test_one_that_is_killed_between_two_uses(make: Maker) -> None:
    judge = make()
    judge.scores("", [red(1)])
    pid = judge.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: judge.pid is None)
    assert judge.scores("", [red(5)]) == [5.0]
    assert is_gone(pid)


@pytest.mark.parametrize(("place", "seconds"), [("before", 0.1), ("instead", 1.0)])
def test_one_that_hangs_is_stopped(make: Maker, place: str, seconds: float) -> None:
    judge, pids = make(**{place: HANG}, seconds=seconds), set()

    def look() -> bool:
        pids.add(judge.pid)
        return False

    started = time.monotonic()
    with pytest.raises(CRDiffError, match="did not answer in time"):
        judge.scores("", [red(1)], look)
    assert time.monotonic() - started < 8
    (pid,) = pids - {None}
    assert is_gone(pid)


def test_one_that_does_not_even_read_cannot_hold_us_up(make: Maker) -> None:
    noise = Image.frombytes("RGB", (512, 512), os.urandom(512 * 512 * 3))  # no pipe holds that
    judge = make(before=f"say(json.dumps({{'ready': True}})); {HANG}", seconds=1.0)
    with pytest.raises(CRDiffError, match="did not answer in time"):
        judge.scores("", [noise] * 2)
    assert judge.pid is None


NONSENSE = {
    "noise": "say('Loading weights: 100%'); continue",
    "half a line": "sys.stdout.write('{'); sys.stdout.flush(); os._exit(0)",
    "a list": "say('[1.0]'); continue",
    "NaN": "scores = [float('nan')]",
    "infinity": "scores = [1e999]",
    "text": "scores = ['1.0']",
    "truth": "scores = [True]",
    "too many": "scores = scores * 2",
    "none": "say(json.dumps({'id': asked['id']})); continue",
    "another id": "asked['id'] = 'x'",
    "an id of no kind": "asked['id'] = [1]",
    "endless line": "sys.stdout.write('x' * (1 << 21)); sys.stdout.flush(); time.sleep(100)",
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_told_and_its_child_stopped(make: Maker, what: str) -> None:
    judge = make(instead=NONSENSE[what])
    with pytest.raises(CRDiffError, match="makes no sense"):
        judge.scores("", [red(1)])
    assert judge.pid is None


def test_nonsense_instead_of_ready(make: Maker) -> None:
    judge = make(before="say(json.dumps({'ready': 'no'}))")
    with pytest.raises(CRDiffError, match="makes no sense"):
        judge.scores("", [red(1)])


def test_output_closed_but_alive(make: Maker) -> None:
    judge = make(instead=f"os.close(1); {HANG}")
    with pytest.raises(CRDiffError, match="has died"):
        judge.scores("", [red(1)])
    assert judge.pid is None


def test_its_own_errors_are_its_own_sentences(make: Maker) -> None:
    judge = make(before="say(json.dumps({'error': 'no weights\\nhere'})); sys.exit(2)")
    with pytest.raises(CRDiffError, match=r"^test can't judge: no weights here$"):
        judge.scores("", [red(1)])
    judge = make(
        instead="if asked['prompt']: say(json.dumps({'id': asked['id'], 'error': 'bad'})); continue"
    )
    with pytest.raises(CRDiffError, match=r"^test can't judge this image: bad$"):
        judge.scores("x", [red(1)])
    pid = judge.pid
    assert pid is not None
    assert judge.scores("", [red(1)]) == [1.0]  # the child is well
    assert judge.pid == pid


@pytest.mark.parametrize("place", ["before", "instead"])
def test_an_interrupt_ends_the_wait_and_the_late_answer_is_dropped(make: Maker, place: str) -> None:
    judge = make(**{place: "time.sleep(1.5)"}, seconds=20.0)
    if place == "instead":
        with pytest.raises(Interrupted):
            judge.scores("", [red(2)], lambda: judge._ready)
    started = time.monotonic()
    with pytest.raises(Interrupted, match="interrupted"):
        judge.scores("", [red(1)], lambda: True)
    assert time.monotonic() - started < 1.0
    pid = judge.pid
    assert judge.scores("", [red(5)]) == [5.0]
    assert judge.pid == pid


def test_a_wait_for_another_thread_is_interrupted_too(make: Maker) -> None:
    judge, errors = make(instead=HANG), []

    def score() -> None:
        try:
            judge.scores("", [red(1)])
        except CRDiffError as error:
            errors.append(str(error))

    thread = threading.Thread(target=score)
    thread.start()
    assert wait_until(lambda: judge._ready)
    with pytest.raises(Interrupted):
        judge.scores("", [red(2)], lambda: True)
    judge.stop()  # in the middle of a score
    thread.join(10)
    assert not thread.is_alive()
    assert "has died" in errors[0]


def test_threads_get_their_own_scores(make: Maker) -> None:
    judge, found = make(), {}

    def score(value: int) -> None:
        found[value] = [judge.scores("", [red(value)])[0] for _ in range(5)]

    threads = [threading.Thread(target=score, args=(value,)) for value in (1, 50, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {value: [float(value)] * 5 for value in (1, 50, 100)}


def test_no_such_program(tmp_path: Path) -> None:
    for program in (tmp_path / "python", tmp_path):
        with pytest.raises(CRDiffError, match="could not be started"):
            Judge("test", [str(program)], 1.0, tmp_path).scores("", [red(1)])


def test_what_the_child_sees_of_the_host(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("KEPT", "7")
    check = "scores = [int('PYTHONPATH' not in os.environ) * int(os.environ['KEPT'])"
    assert make(instead=f"{check} * int(os.environ['HF_HUB_OFFLINE'])]").scores("", [red(1)]) == [7]


PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from PIL import Image
from crdiff_ext.webui.judge import Judge
judge = Judge("test", [sys.executable, "-c", sys.argv[2]], 20.0, Path.cwd())
judge.scores("", [Image.new("RGB", (4, 4))])
print(judge.pid, flush=True)
if sys.argv[3] == "stay":
    time.sleep(100)
"""


@pytest.mark.parametrize("how", ["stay", "leave"])
def test_the_child_ends_with_its_parent(tmp_path: Path, how: str) -> None:
    words = [sys.executable, "-c", PARENT, str(ROOT), source(), how]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if how == "stay":
            assert not is_gone(pid)
            parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    assert wait_until(lambda: is_gone(pid) or _is_zombie(pid))


def _is_zombie(pid: int) -> bool:
    """Ended, and left to a container's first process, which may not look after orphans."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
