"""Pictures as prompts: `@cup.jpg` instead of a name, or beside it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from cliploc.errors import UsageError

BOX = re.compile(r"\[([^\[\]]*)\]$")
IN_CONTRAST = re.compile(r"(^|\|)\s*[^@|\s][^|]*~(.*\|)?\s*@")  # a file behind the ~ of a name; paths may hold ~ too


@dataclass(frozen=True)
class Exemplar:
    """A picture, or a part of it, that stands for a name.

    Attributes:
        name: which of the names asked for it stands for; of "cup|mug~glass" the first is kept.
        image: a path, PIL image or array `[H, W, 3]`.
        box: `(x0, y0, x1, y1)` in pixels of the upright picture, right and bottom edge exclusive; None: all of it.
        with_text: whether the name's text counts too; else only its exemplars do.

    Example:
        >>> Exemplar("cup", "photo.jpg", box=(10, 20, 90, 110)).with_text
        False
    """

    name: str
    image: Any
    box: tuple[float, float, float, float] | None = None
    with_text: bool = False

    def __post_init__(self) -> None:
        # As `cliploc.find.prompts.parse` makes a label, or no name would ever be this one.
        label = " ".join(re.split(r"[|~]", self.name)[0].split()) if isinstance(self.name, str) else ""
        if not label:
            raise UsageError(f"expected the name that an exemplar stands for, got {self.name!r}")
        object.__setattr__(self, "name", label)
        if self.box is None:
            return
        right = isinstance(self.box, list | tuple) and len(self.box) == 4
        right = right and all(isinstance(edge, Real) and math.isfinite(edge) for edge in self.box)
        if not right or not self.box[0] < self.box[2] or not self.box[1] < self.box[3]:
            raise UsageError(f"expected an exemplar's box as x0, y0, x1, y1 with x0 < x1, y0 < y1, got {self.box!r}")


def exemplar_of(text: str) -> Exemplar:
    """Reads `NAME=@FILE[x0,y0,x1,y1]`, or `NAME|@FILE…` where the name's text counts too; the box may be left out."""
    match = re.fullmatch(r"([^=|@]+)([=|])@(.+)", text)
    if match is None:
        raise UsageError(f"expected an exemplar as NAME=@FILE or NAME|@FILE, got {text!r}")
    name, sign, file = match.groups()
    boxed = BOX.search(file)
    if boxed is None:
        return Exemplar(name, file, with_text=sign == "|")
    try:
        x0, y0, x1, y1 = (float(number) for number in boxed.group(1).replace(",", " ").split())
    except ValueError:
        raise UsageError(
            f"expected a box as [x0,y0,x1,y1] after {file[: boxed.start()]}, got {boxed.group()}"
        ) from None
    return Exemplar(name, file[: boxed.start()], (x0, y0, x1, y1), with_text=sign == "|")


def split_entries(entries: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names that a user typed, with `@FILE` among the synonyms or as `NAME=@FILE` → names and texts of exemplars.

    Only a command line, or a file that its user named, may be read so: a name that came over the network must not
    name files.
    """
    names: list[str] = []
    exemplars: list[str] = []
    for entry in entries:
        head, only, rest = entry.partition("=@")
        if not only and IN_CONTRAST.search(entry):
            raise UsageError(f"expected words after ~ in {entry!r}, got a picture: only names can be pictures")
        words = [] if only else [word for word in entry.split("|") if not word.strip().startswith("@")]
        files = [word.strip().removeprefix("@").strip() for word in (f"@{rest}" if only else entry).split("|")
                 if word.strip().startswith("@")]  # fmt: skip
        if not files:
            names.append(entry)
            continue
        if not all(files):
            raise UsageError(f"expected a file after @ in {entry!r}, got none: write @cup.jpg")
        if only:
            words = [head.strip()]
        # Without a name it is called as its file, which may be a photograph of the package.
        stem = Path(BOX.sub("", files[0]).removeprefix("demo:")).stem.replace("~", " ")
        label = words[0].strip() if words else stem
        names.append("|".join(words) if words else label)
        sign = "|" if words and not only else "="
        exemplars += [f"{label}{sign}@{file}" for file in files]
    return names, exemplars
