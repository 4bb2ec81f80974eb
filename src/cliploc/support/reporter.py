"""How long work tells its caller what it does: one object, `Reporter`, with a function for each kind of news."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cliploc.errors import CliplocError


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True)
class Reporter:
    """Callbacks of long work: progress, failures and notes. Those left out are not called.

    Work calls the parts that it has news for; its documentation says which. A part that raises an error ends the work.

    Attributes:
        phase: what the work does from now on, in a few words, such as "writing coco".
        start: a count of pictures begins, or goes on: how many are to be done, and how many there are in all.
        images: so many more pictures are done.
        masked: so many more masked pictures are done, and about so many are left for this batch (the Score-CAM family);
            told in the thread that computes, as is `tower`.
        tower: pixels of pictures are needed, as a tower is to see them; not where a `Memory` has all that is needed.
        bank: so many more names of the bank are embedded, and so many are left: once for a model that is not
            calibrated, in the middle of whatever else goes on. Nothing is told where they are known from before.
        failed: a picture, or another input, cannot be used: its name, and the error, whose text names it too.
        halved: there was not enough memory for a batch of so many pictures, which is done in two halves.
        note: a remark on the run, in one line.

    Example:
        >>> import cliploc
        >>> reporter = cliploc.Reporter(note=print, failed=lambda name, error: print(error))
        >>> reporter.note("part 00003 is damaged: it is computed again")
        part 00003 is damaged: it is computed again
    """

    phase: Callable[[str], None] = _nothing
    start: Callable[[int, int], None] = _nothing
    images: Callable[[int], None] = _nothing
    masked: Callable[[int, int], None] = _nothing
    tower: Callable[[], None] = _nothing
    bank: Callable[[int, int], None] = _nothing
    failed: Callable[[str, CliplocError], None] = _nothing
    halved: Callable[[int], None] = _nothing
    note: Callable[[str], None] = _nothing


SILENT = Reporter()  # tells nobody
BANK = "comparison names"  # what `Reporter.bank` counts, in words


def halved_note(pictures: int) -> str:
    """What `Reporter.halved` says, in words, of a batch of so many."""
    return f"not enough memory for a batch of {pictures} pictures, done in halves"
