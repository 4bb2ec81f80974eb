"""What must be said of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cliploc.reporter import SILENT, Reporter

NAMED = 3  # of many, before a number stands for the rest


def pictures_in_words(names: Sequence[str]) -> str:
    """The first of some names, and how many there are.

    Example:
        >>> pictures_in_words(["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
        '4 pictures (a.jpg, b.jpg, c.jpg and 1 more)'
    """
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} picture{'s' if len(names) != 1 else ''} ({', '.join(names[:NAMED])}{more})"


class Notes:
    """The remarks of a run, each once: every part brings them anew.

    Args:
        reporter: told of each when it comes up for the first time.
    """

    def __init__(self, reporter: Reporter = SILENT) -> None:
        self._reporter = reporter
        self._lines: list[str] = []

    def add(self, lines: Iterable[str]) -> None:
        """Those that are new are kept and told."""
        for line in lines:
            if line not in self._lines:
                self._lines.append(line)
                self._reporter.note(line)

    @property
    def lines(self) -> tuple[str, ...]:
        """All, in the order in which they came up."""
        return tuple(self._lines)
