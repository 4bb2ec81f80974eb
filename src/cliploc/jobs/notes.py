"""The notes of a run: remarks that are shown at its end, and reasons why a model failed on pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from cliploc._process import out_of_memory
from cliploc.errors import ModelError
from cliploc.reporter import SILENT, Reporter, halved_note

NAMED = 3  # pictures named in a note; the rest are only counted


def pictures_in_words(names: Sequence[str]) -> str:
    """The number of pictures and the names of the first ones: "4 pictures (a.jpg, b.jpg, c.jpg and 1 more)"."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} picture{'s' if len(names) != 1 else ''} ({', '.join(names[:NAMED])}{more})"


def failure_reason(error: ModelError | RuntimeError | MemoryError) -> str:
    """The reason of a failure, in one line."""
    if isinstance(error, ModelError):
        return str(error)
    if not out_of_memory(error):
        raise error
    return "not enough memory for a single picture: use a smaller --image-size or fewer --scales"


def collect_halved(notes: list[str]) -> Callable[[int], None]:
    """What a `Reporter` calls with the number of halved batches: adds a line to these notes."""
    return lambda count: notes.append(halved_note(count))


class Notes:
    """The notes of a run, without repetitions, though every part brings the same ones."""

    def __init__(self, reporter: Reporter = SILENT) -> None:
        self._reporter = reporter
        self._lines: list[str] = []

    def add(self, lines: Iterable[str]) -> None:
        """Adds and reports the notes that are new."""
        for line in lines:
            if line not in self._lines:
                self._lines.append(line)
                self._reporter.note(line)

    @property
    def lines(self) -> tuple[str, ...]:
        """All notes, in the order in which they were added."""
        return tuple(self._lines)
