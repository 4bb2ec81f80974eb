"""The labels of an annotation: names with synonyms and thresholds, and names of the background."""

import re
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cliploc.errors import CliplocWarning, UsageError
from cliploc.find import prompts
from cliploc.options import parse_share

BACKGROUND = "background:"
THRESHOLD = re.compile(r"(.*\S)\s+@\s*(\S+)")


@dataclass(frozen=True)
class Labels:
    """The names to find and the names of the background."""

    entries: tuple[str, ...]  # names to find, as `cliploc.find.prompts.parse` takes them, such as "cat|kitten"
    # for each entry the minimum certainty that the thing is there, 0–1; None for the run's threshold
    thresholds: tuple[float | None, ...]
    background: tuple[str, ...] = ()  # names of the background

    @property
    def names(self) -> tuple[str, ...]:
        """The label of each entry."""
        return prompts.parse(self.entries).names


def read_labels(path: str | Path) -> Labels:
    """Reads a label a line: `name|synonym~contrast @0.3`, `background: name`, or a WordNet id; # is a comment."""
    lines = prompts.read_lines(path, "names")
    return labels_of([line for _, line in lines], f"{path}: ")


def labels_of(lines: Sequence[str], where: str = "") -> Labels:
    """Parses labels from lines, as in a file of `read_labels`."""
    prompts.check_list(lines)
    entries: list[str] = []
    thresholds: list[float | None] = []
    background: list[str] = []
    for line in lines:
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in line):
            raise UsageError(f"{where}expected a name, got {line!r} with a control character: remove it")
        if line.lower().startswith(BACKGROUND):
            background.append(line[len(BACKGROUND) :].strip())
            continue
        match = THRESHOLD.fullmatch(line)
        entries.append(prompts.class_entry(match.group(1) if match else line, where))
        expected = f"{where}{line}: expected a threshold from 0 to 1 after @"
        thresholds.append(parse_share(match.group(2), expected) if match else None)
    prompts.warn_of_commas(entries, where)
    if not entries:
        raise UsageError(f"{where}expected names to find, got none: write one per line")
    try:
        names = prompts.parse(entries).names
        if background:
            prompts.parse(background, contrasts=False)
    except UsageError as error:
        raise UsageError(f"{where}{error}") from None
    first: dict[str, str] = {}
    for name in names:  # models read no capitals, so the boxes of such labels lie on each other
        if (other := first.setdefault(name.casefold(), name)) != name:
            remark = f"{where}{other!r} and {name!r} differ in capitals only, and are two labels: leave one out"
            warnings.warn(remark, CliplocWarning, stacklevel=2)
            break
    return Labels(tuple(entries), tuple(thresholds), tuple(background))
