"""What takes a while, in words: bars on a terminal, plain lines elsewhere; never long silent."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

SILENT = 2.0
"""Seconds after which a phase says what it is: shorter ones are not worth a line."""

HEARTBEAT = 15.0
"""Seconds between lines of a phase that goes on."""

COMPILES = "compiles first if need be, a minute or two"
"""Said of what waits for XLA."""

COUNTED = 3
"""Reports of more items done before the time left is estimated: the first one compiles."""


def duration(seconds: float) -> str:
    """A time as people say it: ``40 s``, ``3 min``, ``2 h 05 min``."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: float) -> str:
    """A time that was measured: ``40 s``, ``3 min 05 s``, ``2 h 05 min``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if 0 < minutes < 60 else duration(seconds)


@dataclasses.dataclass
class _Phase:
    """What is done from ``began`` on; ``total`` ends it, and ``done`` of ``items`` are counted."""

    label: str
    total: int
    began: float
    about: str = ""
    note: str = ""
    done: int = 0
    items: int = 0
    reports: int = 0
    first: tuple[float, int] = (0.0, 0)
    said: bool = False

    def count(self, done: int, items: int, note: str, now: float) -> None:
        """``done`` of ``items`` by ``now``; a count of one says nothing."""
        if items != self.items:
            self.reports = 0
        elif done > self.done:
            self.reports += 1
            if self.reports == 1:  # what it took to compile says nothing about the time left
                self.first = now, done
        if not self.reports:
            self.about, note = note or self.about, ""
        self.done, self.items, self.note = done, items, note

    def words(self, now: float) -> str:
        """How far it is: a count, the time left or the time since it began, and the note."""
        counting = self.items > 1 and self.done < self.items
        parts = [f"{self.done}/{self.items}"] * counting
        since, before = self.first
        if counting and self.reports >= COUNTED and now > since:
            rate = (self.done - before) / (now - since)
            parts.append(f"{duration((self.items - self.done) / rate)} left")
        elif now - self.began > HEARTBEAT / 2:
            parts.append(f"{clock(now - self.began)} so far")
        note = self.note or self.about * (not self.said)
        return ", ".join([*parts, note] if note else parts)

    def ending(self, now: float) -> str:
        """What was done, in which time, and the note it ended with."""
        parts = [f"{self.done}/{self.items}"] * (self.items > 1)
        parts += [clock(now - self.began), *[self.note] * bool(self.note)]
        return f"{self.label}: {', '.join(parts)}"


class Progress:
    """Context manager that says what is going on, by a thread that looks at the clock.

    Phases are told to :meth:`report`; the last one that has not ended is what is going on.

    Args:
      label: of a phase as long as the context; empty: none.
      about: what is said of it before anything is counted: how long it usually takes.
      quiet: say nothing.
    """

    def __init__(self, label: str = "", about: str = "", *, quiet: bool = False):
        self.label, self.about, self.quiet = label, about, quiet
        self._phases: dict[str, _Phase] = {}
        self._tasks: dict[str, Any] = {}
        self._last = time.monotonic()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._bar = None

    def __enter__(self) -> Progress:
        if self.label:
            self._phases[self.label] = _Phase(self.label, -1, time.monotonic(), self.about)
        if self.quiet:
            return self
        if sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind, *_) -> None:
        self._stop.set()
        if self.quiet:
            return
        self._thread.join()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if kind is None and self.label:
            self._end(self._phases[self.label])

    def update(self, done: int, total: int, failed: int = 0, note: str = "") -> None:
        """``done`` of ``total`` in the phase of the context; ``failed`` of them are said."""
        self.report(self.label, done, total, note or (f"{failed} failed" if failed else ""))

    def report(self, stage: str, done: int, total: int, note: str = "") -> None:
        """The signature of :data:`opml_jax.learn.run.Progress`.

        A stage begins with its first report and ends when all of the ``total`` it began with is
        done, and with it all that began after it; meanwhile it may count something else.
        """
        with self._lock:
            now = time.monotonic()
            phase = self._phases.get(stage)
            if phase is None:
                phase = self._phases[stage] = _Phase(stage, total, now, note)
            phase.count(done, total, note, now)
            if done >= total == phase.total:
                phase.note = note
                self._end(phase)

    @contextlib.contextmanager
    def phase(self, label: str, about: str = "") -> Iterator[None]:
        """A phase without a count."""
        self.report(label, 0, 1, about)
        yield
        self.report(label, 1, 1)

    def _watch(self) -> None:
        while not self._stop.wait(0.25):
            with self._lock:
                now, phases = time.monotonic(), [*self._phases.values()]
                if self._bar is not None:
                    self._show(phases, now)
                elif phases and now - phases[-1].began > SILENT:
                    phase = phases[-1]
                    if not phase.said or now - self._last > HEARTBEAT:
                        words, phase.said = phase.words(now), True
                        self._say(f"{phase.label}: {words}" if words else f"{phase.label} ...")

    def _show(self, phases: list[_Phase], now: float) -> None:
        """Bars of the phases there are."""
        assert self._bar is not None
        for label in [*self._tasks.keys() - {p.label for p in phases}]:
            self._bar.remove_task(self._tasks.pop(label))
        for phase in phases:
            if phase.label not in self._tasks:
                self._tasks[phase.label] = self._bar.add_task(phase.label, state="")
            total = phase.items if phase.items > 1 else None
            shown = {"total": total, "completed": phase.done, "state": phase.words(now)}
            self._bar.update(self._tasks[phase.label], **shown)
            phase.said = phase.said or now - phase.began > HEARTBEAT

    def _end(self, phase: _Phase) -> None:
        """Forget a phase and those within it; one that has said something says how it ended."""
        labels = [*self._phases]
        for label in labels[labels.index(phase.label) :]:
            del self._phases[label]
        if phase.said or phase.note:
            self._say(phase.ending(time.monotonic()))

    def say(self, text: str) -> None:
        """Print a line about what is going on."""
        with self._lock:
            self._say(text)

    def _say(self, text: str) -> None:
        if self.quiet:
            return
        self._last = time.monotonic()
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


def _bar():
    """Bars on standard error that leave nothing behind; what is printed there stands above them."""
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24)
    console = Console(stderr=True)
    return Bar(
        *columns,
        TextColumn("{task.fields[state]}"),
        console=console,
        transient=True,
        redirect_stdout=False,
    )


def working(label: str, about: str = "") -> Progress:
    """A :class:`Progress` of what takes a while and has no count."""
    return Progress(label, about)
