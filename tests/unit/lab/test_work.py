"""Tasks beside whoever asks for them."""

import re
import threading
import warnings

import pytest

from editkit.editing.targets import Step
from editkit.lab.work import Worker, sentence


def test_a_task_tells_its_steps_and_what_it_warned_of():
    seen = []
    worker = Worker(lambda: seen.append((worker.doing, len(worker.steps))))

    def task():
        worker.watch(Step(1, 2, 1, 3.0))
        warnings.warn("odd", stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    worker.start("counting", task)
    worker.wait(10)
    assert seen == [("counting", 0), ("counting", 1), ("", 1)] and worker.notes[1:] == ["odd"] and not worker.error


def test_one_at_a_time_and_stopped_between_steps():
    here, go = threading.Event(), threading.Event()
    worker, reached = Worker(lambda: None), []

    def task():
        here.set()
        go.wait(10)
        worker.watch(Step(1, 2, 1, 3.0))
        reached.append("after it")

    worker.start("waiting", task)
    here.wait(10)
    with pytest.raises(RuntimeError, match="waiting first"):
        worker.start("more", task)
    with pytest.raises(TimeoutError, match="waiting takes longer"):
        worker.wait(0.01)
    worker.stop()
    go.set()
    worker.wait(10)
    assert not reached and not worker.busy and worker.notes[0] == "stopped: the weights are as they were"
    worker.start("again", lambda: reached.append("a new task is not stopped"))
    worker.wait(10)
    assert len(reached) == 1 and len(worker.notes) == 1
    assert re.fullmatch(r"again took 0\.\d s", worker.notes[0])


def test_a_task_goes_on_part_by_part_and_says_what_a_stop_leaves():
    here, go, worker = threading.Event(), threading.Event(), Worker(lambda: None)

    def task():
        worker.go_on("second", "the first part stays")
        here.set()
        go.wait(10)
        worker.go_on("third", "two parts stay")

    worker.start("first", task)
    here.wait(10)
    assert worker.doing == "second"
    worker.stop()
    go.set()
    worker.wait(10)
    first, told, second = worker.notes
    assert told == "stopped: the first part stays" and not worker.error
    assert first.startswith("first took") and second.startswith("second took")


def test_whatever_fails_is_told_in_a_sentence():
    worker = Worker(lambda: None)

    def fails():
        raise MemoryError("no room\n  for it")

    worker.start("failing", fails)
    worker.wait(10)
    assert worker.error == "MemoryError: no room for it" and not worker.busy and not worker.lock.locked()
    assert sentence(ValueError("n = 0: must be 1")) == "n = 0: must be 1"
    assert sentence(KeyError()) == "KeyError: no reason given"
