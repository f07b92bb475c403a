"""One task at a time, beside whoever asked for it, that can be told to stop."""

import threading
import time
import warnings
from collections.abc import Callable

from editkit.editing.targets import Step

NOTES = 3  # warnings of one task that are told


class Stopped(Exception):
    """Somebody asked the task to stop."""


class Worker:
    """Runs tasks in a thread of their own.

    Args:
        changed: called whenever there is something new to see, from the task's thread as well.
    """

    def __init__(self, changed: Callable[[], None]):
        self.changed = changed
        self.doing = ""  # what is being done, in words; empty where nothing is
        self.steps: list[Step] = []  # of the search that is under way, or was last
        self.kept = ""  # what a stop leaves, in words
        self.error = ""  # why the last task failed, in a sentence
        self.notes: list[str] = []  # how long it took, and what it warned of
        self.lock = threading.Lock()  # held by whoever uses the model
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._begun = 0.0  # when what is being done began

    @property
    def busy(self) -> bool:
        return bool(self.doing)

    def start(self, doing: str, task: Callable[[], None]) -> None:
        """Begin a task. Raises ``RuntimeError`` while another is under way."""
        if self.busy:
            raise RuntimeError(f"{self.doing} first")
        self.doing, self.steps, self.error, self.notes = doing, [], "", []
        self.kept = "the weights are as they were"
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(task,), name=f"editkit: {doing}", daemon=True)
        self._thread.start()

    def watch(self, step: Step) -> None:
        """Take note of a step; raises :class:`Stopped` where that was asked for."""
        self._check()
        self.steps.append(step)
        self.changed()

    def go_on(self, doing: str, kept: str) -> None:
        """Begin another part of the task, with what a stop leaves from here on; raises :class:`Stopped` as above."""
        self._check()
        self._note_time()
        self.doing, self.kept = doing, kept
        self.changed()

    def stop(self) -> None:
        """Ask the task to end between two steps."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until nothing is being done. Raises ``TimeoutError`` after ``timeout`` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise TimeoutError(f"{self.doing} takes longer than {timeout:g} s")

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def _note_time(self) -> None:
        self.notes.append(f"{self.doing} took {time.perf_counter() - self._begun:.1f} s")
        self._begun = time.perf_counter()

    def _run(self, task: Callable[[], None]) -> None:
        told: list[warnings.WarningMessage] = []
        self._begun = time.perf_counter()
        try:
            self.changed()
            with self.lock, warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                task()
        except Stopped:
            self.notes.append(f"stopped: {self.kept}")
        except Exception as problem:  # of any kind: it is told in place, and the model is as it was
            self.error = sentence(problem)
        finally:
            user = [str(one.message) for one in told if issubclass(one.category, UserWarning)]
            self._note_time()
            self.notes += list(dict.fromkeys(user))[:NOTES]
            self.doing = ""
            self.changed()


def sentence(problem: BaseException) -> str:
    """Say an error in one line; one that is no word of this package is named."""
    text = " ".join(str(problem).split()) or "no reason given"
    return text if isinstance(problem, ValueError | FloatingPointError) else f"{type(problem).__name__}: {text}"
