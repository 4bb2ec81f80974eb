"""Names and templates as users write them, in lists and files; those that the package has."""

import csv
import functools
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Self

import numpy as np

from cliploc.errors import CliplocWarning, UsageError, first_line
from cliploc.options import parse_share
from cliploc.support.files import read_text, user_path
from cliploc.values import FloatArray, TextSet

DEFAULT_TEMPLATES = ("a photo of a {}.",)
MAX_NAME_LENGTH = 300  # characters; CLIP reads 77 tokens
BACKGROUND = "background:"  # a line of version 0.2.0
THRESHOLD = re.compile(r"(.*\S)\s+@\s*(\S+)")
CONTRAST = "~"  # between a name and what it is told from


def packaged_entries(file: str) -> tuple[tuple[str, ...], ...]:
    """The lines of a file of the package, each split at its "|"; those that begin with # are left out."""
    lines = (resources.files("cliploc.find") / "prompt_data" / file).read_text(encoding="utf-8").splitlines()
    return tuple(tuple(line.split("|")) for line in lines if not line.startswith("#"))


OPENAI_80_TEMPLATES = tuple(template for (template,) in packaged_entries("openai-80.txt"))
# The seven of them that OpenAI found to do as well for ViTs ("Prompt Engineering", end).
OPENAI_7_TEMPLATES = (
    "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.",
    "art of the {}.", "a photo of the small {}.",
)  # fmt: skip
OPENAI_SETS = {"openai-80": OPENAI_80_TEMPLATES, "openai-7": OPENAI_7_TEMPLATES}
TEMPLATE_SETS = {"default": DEFAULT_TEMPLATES, **OPENAI_SETS, "name-only": ("{}",)}


class Embedded(str):
    """A name with an embedding `[D]` of the user's own: a learnt prompt, a direction; it equals no other text."""

    embedding: FloatArray

    def __new__(cls, name: str, embedding: Any) -> Self:
        """An embedding `[D]`, an array or a tensor."""
        made = super().__new__(cls, name)
        made.embedding = _array(embedding)
        if made.embedding.ndim != 1 or not np.isfinite(made.embedding).all() or not made.embedding.any():
            shape = list(made.embedding.shape)
            raise UsageError(f"expected an embedding [D] of finite numbers for {name!r}, got one of shape {shape}")
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Embedded) and hash(self) == hash(other)

    def __hash__(self) -> int:
        return hash((str(self), self.embedding.tobytes()))

    def __reduce__(self) -> Any:
        return Embedded, (str(self), self.embedding)


def _array(values: Any) -> FloatArray:
    """Numbers of an array or of a tensor, which may be on a GPU or have a graph."""
    return np.asarray(values.detach().cpu().float() if hasattr(values, "detach") else values, np.float32)


def named(names: Any) -> Any:
    """Embeddings in place of names, `{name: [D]}` or `[P, D]`, as a list; a list of texts as it is."""
    if isinstance(names, Mapping):
        return [Embedded(name, embedding) for name, embedding in names.items()]
    if not hasattr(names, "ndim"):
        return names
    if names.ndim != 2:
        raise UsageError(f"expected embeddings [P, D] in place of names, got shape {list(names.shape)}")
    return [Embedded(f"text {number}", row) for number, row in enumerate(_array(names), start=1)]


def read_embeddings(path: str | Path) -> list[Embedded]:
    """The tensors of a safetensors file as names with embeddings: each is one `[D]`, or several `[P, D]`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(user_path(path))
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"expected a safetensors file of embeddings, got {path} ({first_line(error)})") from None
    found = []
    for name, rows in tensors.items():
        several = rows.ndim == 2 and len(rows) > 1
        parts = rows if rows.ndim == 2 else [rows]
        found += [Embedded(f"{name} {i}" if several else name, row) for i, row in enumerate(parts, start=1)]
    return found


def check_list(names: object) -> None:
    """Refuses anything but a list of names: above all a single text, which Python reads as a list of letters."""
    if isinstance(names, str):
        raise UsageError(f"expected a list of names, got the single text {names!r}: write [{names!r}]")
    if not isinstance(names, Sequence) or isinstance(names, bytes | bytearray):
        raise UsageError(f"expected a list of names, got {type(names).__name__}: write them as ['cat', 'dog']")


def parse(names: Any, templates: Sequence[str] | str | None = None, *, contrasts: bool = True) -> TextSet:
    """A `TextSet` of names as typed, "helmet|hard hat~bare head|hair": synonyms, then a contrast; and templates."""
    names = named(names)
    check_list(names)
    synonyms: list[tuple[str, ...]] = []
    against: list[tuple[str, ...]] = []
    for entry in names:
        if isinstance(entry, Embedded):
            synonyms.append((entry,))
            against.append(())
            continue
        if not isinstance(entry, str):
            raise UsageError(f"expected each name to be a text, got {entry!r}: write all names in one list of texts")
        if entry.count(CONTRAST) > 1:
            raise UsageError(f"expected one contrast of a name, got more ({entry[:40]!r}): write them as a~b|c")
        if CONTRAST in entry and not contrasts:
            got = f"{entry[:40]!r}: leave it out from {CONTRAST} on"
            raise UsageError(f"expected a name without a contrast here, got {got}")
        name, *contrast = (_words(side, entry) for side in entry.split(CONTRAST))
        synonyms.append(name)
        against.append(contrast[0] if contrast else ())
        spoken = set(map(str.casefold, name))
        if both := [word for word in against[-1] if word.casefold() in spoken]:
            raise UsageError(f"expected another contrast than the name, got {both[0][:40]!r} as both: leave one out")
    labels = tuple(
        CONTRAST.join(str(side[0]) for side in sides if side) for sides in zip(synonyms, against, strict=True)
    )
    for label, times in Counter(labels).items():
        if times > 1:
            raise UsageError(f"expected each name once, got {label!r} {times} times: remove the duplicate")
    return TextSet(labels, tuple(synonyms), resolve_templates(templates), tuple(against))


def _words(side: str, entry: str) -> tuple[str, ...]:
    """The synonyms in a side of an entry."""
    words = tuple(" ".join(word.split()) for word in side.split("|"))
    if not all(words):
        raise UsageError(f"expected a name, got an empty one ({entry[:40]!r}): leave it out or fill it in")
    for word in words:
        if len(word) > MAX_NAME_LENGTH:
            raise UsageError(
                f"expected a name of at most {MAX_NAME_LENGTH} characters, got {len(word)} ({word[:20]}…): shorten it"
            )
    return words


def resolve_templates(templates: Sequence[str] | str | None) -> tuple[str, ...]:
    """The sentences meant by a set's name, a file's path, a single template, a list of these, or None (the default)."""
    if templates is None:
        return DEFAULT_TEMPLATES
    if isinstance(templates, str):
        if templates in TEMPLATE_SETS:
            return TEMPLATE_SETS[templates]
        if "{}" not in templates:
            if templates.endswith(".txt"):
                return read_templates(templates)
            raise UsageError(
                f"expected a template with {{}} for the name, or one of {', '.join(TEMPLATE_SETS)}, or a .txt file of "
                f"templates; got {templates!r}"
            )
        return (templates,)
    if not templates:
        raise UsageError("expected at least one template, got none: leave the option out for the default")
    if not all(isinstance(template, str) for template in templates):
        raise UsageError(f"expected templates as a list of texts, got {templates!r}")
    return tuple(sentence for template in templates for sentence in resolve_templates(template))


@dataclass(frozen=True)
class ImageNetClass:
    """One of ILSVRC's 1,000 classes."""

    wnid: str  # WordNet id, "n01440764"
    name: str  # a short English name, unique among the 1,000
    synonyms: tuple[str, ...]  # WordNet's words for it, in its order, without those that equal the name

    @property
    def entry(self) -> str:
        """Name and synonyms as `parse` takes them."""
        return "|".join((self.name, *self.synonyms))


def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """ImageNet's 1,000 classes by label, in OpenAI's names (Radford 2021), but for four, two of which occur twice."""
    table = (resources.files("cliploc.find") / "prompt_data" / "imagenet.csv").read_text(encoding="utf-8")
    _, *rows = csv.reader(table.splitlines())
    return tuple(
        ImageNetClass(wnid, name, tuple(word for word in words.split(", ") if word.casefold() != name.casefold()))
        for wnid, name, words in rows
    )


def warn_of_commas(entries: Sequence[str], where: str = "") -> None:
    """Warns once if names hold commas, as commas do not separate names."""
    if with_commas := [one for one in entries if "," in one.partition("@")[0]]:  # the part of a picture has some, too
        others = len(with_commas) - 1
        more = f", as {'is 1 other line' if others == 1 else f'are {others} other lines'} with commas" if others else ""
        warnings.warn(
            f"{where}{with_commas[0]!r} is taken as one name{more}: give names one by one, and synonyms as cat|kitten",
            CliplocWarning,
            stacklevel=3,
        )


def class_entry(line: str, where: str = "") -> str:
    """A line of `read_labels` as `parse` takes it: "n01440764" is "tench|Tinca tinca"."""
    match = re.fullmatch(r"(n\d{8})(?:[\s,:]+(.+))?", line)
    if match is None:
        return line
    if match.group(2):
        return "|".join(word.strip() for word in match.group(2).split(","))
    if line not in imagenet_entries():
        raise UsageError(f"{where}{line} is not one of ImageNet's 1,000 classes: write its name after the id")
    return imagenet_entries()[line]


@functools.cache
def imagenet_entries() -> dict[str, str]:
    """WordNet id of each of ImageNet's classes → its name and synonyms as `parse` takes them."""
    return {known.wnid: known.entry for known in imagenet_classes()}


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Templates, one a line, each with one `{}` where the name goes; # is a comment."""
    templates = []
    for number, line in read_lines(path, "templates"):
        if line.count("{}") != 1:
            raise UsageError(f"{path}, line {number}: expected a template with one {{}} for the name, got {line!r}")
        templates.append(line)
    return tuple(templates)


def read_lines(path: str | Path, what: str) -> list[tuple[int, str]]:
    """The lines of a UTF-8 text with their numbers, without empty lines and comments."""
    try:
        text = read_text(user_path(path))
    except UnicodeDecodeError:
        raise UsageError(f"expected a text file of {what}, got {path}, which is not UTF-8: save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"expected a file of {what}, one per line, but {path} cannot be read: {reason}: check the path"
            + (", or give names with -p" if what == "names" else "")
        ) from None
    lines = [(number, " ".join(line.split())) for number, line in enumerate(text.splitlines(), start=1)]
    filled = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not filled:
        raise UsageError(f"expected {what} in {path}, one per line, found none: fill it in")
    return filled


# ------------------------------------------------------------------------------------------ labels of an annotation
@dataclass(frozen=True)
class Labels:
    """The names to find."""

    entries: tuple[str, ...]  # names to find, as `cliploc.find.prompts.parse` takes them, such as "cat|kitten"
    # for each entry the minimum certainty that the thing is there, 0–1; None for the run's threshold
    thresholds: tuple[float | None, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The label of each entry."""
        return parse(self.entries).names

    def after(self, names: Sequence[str]) -> Self:
        """With the names of an earlier call first, if it has them all: they keep their numbers in exports."""
        place = {name: number for number, name in enumerate(self.names)}
        if not {*names} <= place.keys():
            return self
        order = [place.pop(name) for name in names] + [*place.values()]
        thresholds = tuple(self.thresholds[i] for i in order)
        return replace(self, entries=tuple(self.entries[i] for i in order), thresholds=thresholds)


def read_labels(path: str | Path) -> Labels:
    """Reads a label a line: `name|synonym~contrast @0.3`, or a WordNet id; # is a comment."""
    lines = read_lines(path, "names")
    return labels_of([line for _, line in lines], f"{path}: ")


def labels_of(lines: Sequence[str], where: str = "") -> Labels:
    """Parses labels from lines, as in a file of `read_labels`."""
    check_list(lines)
    entries: list[str] = []
    thresholds: list[float | None] = []
    for line in lines:
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in line):
            raise UsageError(f"{where}expected a name, got {line!r} with a control character: remove it")
        if line.lower().startswith(BACKGROUND):
            raise UsageError(f"{where}expected a name, got {line!r}: give each name its contrast instead: cat~lawn")
        match = THRESHOLD.fullmatch(line)
        entries.append(class_entry(match.group(1) if match else line, where))
        expected = f"{where}{line}: expected a threshold from 0 to 1 after @"
        thresholds.append(parse_share(match.group(2), expected) if match else None)
    warn_of_commas(entries, where)
    if not entries:
        raise UsageError(f"{where}expected names to find, got none: write one per line")
    try:
        names = parse(entries).names
    except UsageError as error:
        raise UsageError(f"{where}{error}") from None
    first: dict[str, str] = {}
    for name in names:  # models read no capitals, so the boxes of such labels lie on each other
        if (other := first.setdefault(name.casefold(), name)) != name:
            remark = f"{where}{other!r} and {name!r} differ in capitals only, and are two labels: leave one out"
            warnings.warn(remark, CliplocWarning, stacklevel=2)
            break
    return Labels(tuple(entries), tuple(thresholds))
