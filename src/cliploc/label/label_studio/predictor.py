"""Predictions for Label Studio's tasks by one localizer, for the labels that a project's interface has."""

import hashlib
import json
import re
import threading
import xml.etree.ElementTree as ET
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct
from PIL import Image

from cliploc import __version__
from cliploc.boxes.outlines import merged
from cliploc.errors import InputError, UsageError
from cliploc.find import memory, prepare, prompts
from cliploc.find.learnt import load_learnt, misfit
from cliploc.formats.labelstudio import KINDS, Kind, polygon_shape, rectangle_shape, region
from cliploc.images.reading import load
from cliploc.label.editor.review_folder import ReviewFolder
from cliploc.label.label_studio.task_pictures import PictureSource, short
from cliploc.label.results import LEARNT
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.options import Options

MEMORY = 64 * 2**20  # bytes for embeddings of names, and for features of pictures that may be asked for again
MOST_REASONS = 5  # names in the line that says why nothing was found
TAGS = "RectangleLabels or PolygonLabels"
COARSE = 1 / 500  # of a picture's longer side: how far a polygon may lie from the mask's outline


# ------------------------------------------------------------------------------------------- the labelling interface
@dataclass(frozen=True)
class Control:
    """A tag that has labels."""

    kind: Kind  # what it draws, its tag in small letters
    name: str  # its name
    # the name of each picture's tag that it draws on → the key of the picture in a task's data
    pictures: Mapping[str, str]
    labels: Mapping[int, str]  # index of a name to look for → the label that a shape of it gets


@dataclass(frozen=True)
class Labelling:
    """What a project looks for."""

    entries: tuple[str, ...]  # names to look for, with synonyms: "cat|kitten"
    controls: tuple[Control, ...]  # the tags that take what is found


def read_labelling(config: str) -> Labelling:
    """Reads a labelling interface."""
    try:
        root = ET.fromstring(config)
    except (ET.ParseError, ValueError) as error:
        raise UsageError(f"expected the labelling interface as XML, got something else ({error})") from None
    tags = [(tag.tag.lower(), tag) for tag in root.iter()]
    images = {tag.get("name", ""): tag.get("value", "") for kind, tag in tags if kind == "image"}
    words: dict[str, dict[str, None]] = {}  # what a label is called → all that it is looked for by, in order
    index: dict[str, int] = {}  # what a label is called → its place among them
    controls: list[Control] = []
    for kind, tag in ((kind, tag) for name, tag in tags for kind in KINDS if kind == name):
        targets = [name.strip() for name in tag.get("toName", "").split(",")]
        pictures = {to: _key(images[to], to) for to in targets if to in images}
        name, to_name = tag.get("name", ""), short(tag.get("toName", ""))
        if not pictures:
            raise UsageError(f"expected {tag.tag} {short(name)!r} to name an Image in toName, got {to_name!r}")
        labels: dict[int, str] = {}
        for label in _labels(tag):
            if names := _words(label):
                words.setdefault(names[0], {}).update(dict.fromkeys(names))
                place = index.setdefault(names[0], len(index))
                labels[place] = label.get("alias") or label.get("value") or names[0]
        controls.append(Control(kind, name, pictures, labels))
    if not controls:
        raise UsageError(f"expected {TAGS} on an Image in the labelling interface, found none: add one")
    if not words:
        raise UsageError(f'expected labels such as <Label value="cat"/> in {TAGS}, found none: add some')
    entries = tuple("|".join(sorted(some, key=lambda word: prompts.CONTRAST in word)) for some in words.values())
    prompts.parse(entries)
    return Labelling(entries, tuple(controls))


def _labels(tag: ET.Element) -> Iterator[Mapping[str, str]]:
    """The labels of a tag; one belongs to the nearest tag around it."""
    for child in tag:
        if child.tag.lower() == "label":
            yield child.attrib
        if child.tag.lower() not in KINDS:
            yield from _labels(child)


def _key(value: str, name: str) -> str:
    """`$photo` → `photo`."""
    if not re.fullmatch(r"\$\w[\w .-]*", value):
        what = f"the value of Image {short(name)!r} as a variable such as $image"
        raise UsageError(f"expected {what}, got {short(value)!r}")
    return value[1:]


def _words(label: Mapping[str, str]) -> list[str]:
    """The words that a label is looked for by, each once, its value first."""
    separators = (("value", r"\|"), ("alias", r"[|,]"), ("predicted_values", r"[|,]"))
    words = [word for key, separator in separators for word in re.split(separator, label.get(key, ""))]
    return list(dict.fromkeys(" ".join(word.split()) for word in words if word.strip()))


# --------------------------------------------------------------------------------------------------------- predictions
class Task(Struct):
    """A task as Label Studio sends it."""

    data: dict[str, Any]
    id: int | str | None = None


@dataclass(frozen=True)
class Predictions:
    """The predictions for a request's tasks."""

    results: list[dict[str, Any] | None]  # a prediction for each task; None where there is none
    errors: dict[int, str]  # index of a task → why it has none
    empty: list[str]  # a line for each task in which nothing was found, with the reasons
    version: str  # of the model and its lessons


class Predictor:
    """One model behind Label Studio's requests, which are answered one after the other."""

    def __init__(
        self, options: Options, pictures: PictureSource, max_pixels: int, drafts: ReviewFolder | None = None
    ) -> None:
        self._options = options.but(memory=memory.Memory(MEMORY))
        self._pictures, self._max_pixels = pictures, max_pixels
        self._localizer = Localizer(**self._options.changed())
        self._learnt: str | None = None  # a digest of the lessons that it has
        self._drafts = drafts
        self._one_at_a_time = threading.Lock()
        self._ended = threading.Event()
        if drafts is None:
            return
        if not drafts.learning.possible:
            raise UsageError(
                f"expected --learn as a folder that can learn, got {drafts.out}: annotate the pictures with --teach "
                "on, into a folder that can be written"
            )
        # Whose lessons would not hold for another model.
        described = {**self._localizer.describe(), "teaching": self._localizer.teaching()}
        if (reason := misfit(drafts.settings, described)) is not None:
            raise UsageError(
                f"expected the model and settings of {drafts.out}, got others: {reason}: give those of its run"
            )

    @property
    def version(self) -> str:
        """For Label Studio: other settings or lessons have another version, so that it asks again."""
        now = self._now()
        digest = hashlib.sha256(json.dumps(now.describe(), default=str, sort_keys=True).encode()).hexdigest()[:8]
        return f"cliploc {__version__} {now.backbone.name} {now.method.name} {digest}"

    def _now(self) -> Localizer:
        """The localizer with the lessons of now, of the same model."""
        if self._drafts is not None:
            path = self._drafts.out / LEARNT
            learnt = load_learnt(path).digest() if path.exists() else None
            if learnt != self._learnt:
                lessons = None if learnt is None else path
                options = self._options.but(model=self._localizer.backbone, pretrained=None, learnt=lessons)
                self._localizer, self._learnt = Localizer(**options.changed()), learnt
        return self._localizer

    def end(self) -> None:
        """No further task is begun."""
        self._ended.set()

    def files_of(self, task: Mapping[str, Any]) -> list[Path]:
        """The files of a task's pictures on this machine; none where its `path` says which picture of a run it is."""
        data, files = task.get("data", {}), list[Path]()
        if "path" not in data:
            for address in data.values():
                with suppress(InputError):
                    if isinstance(address, str) and (file := self._pictures.local(address)) is not None:
                        files.append(file)
        return files

    def unknown(self, labelling: Labelling) -> dict[str, str]:
        """Labels that the model cannot know → why."""
        unknown = self._now().unknown_names(labelling.entries)
        if len(unknown) == len(labelling.entries) and self._drafts is None:
            raise UsageError(f"expected a label that the model knows: {next(iter(unknown.values()))}")
        return dict(unknown)

    def __call__(self, tasks: Sequence[Task], labelling: Labelling) -> Predictions:
        """Predictions for the tasks, in their order."""
        self.unknown(labelling)
        version, localizer = self.version, self._localizer
        keys = list(dict.fromkeys(key for control in labelling.controls for key in control.pictures.values()))
        shapes: dict[int, list[dict[str, Any]]] = {}
        reasons: dict[int, list[str]] = {}  # index of a task → why its names were not found
        errors: dict[int, str] = {}
        places: dict[Hashable, tuple[int, str]] = {}  # id of a request → task and key of its picture

        def requests() -> Iterator[prepare.Request]:
            for place, task in enumerate(tasks):
                for key in keys:
                    if self._ended.is_set() or place in errors:
                        continue
                    name = _name(task, place)
                    try:
                        request = prepare.Request((place, key), self._image(task, key), labelling.entries, name)
                    except InputError as error:
                        errors[place] = f"{name}: {error}"
                    else:
                        places[request.id] = (place, key)
                        yield request

        with self._one_at_a_time, closing(localizer.run(requests(), absent_maps=False)) as results:
            for result in results:
                place, key = places[result.id]
                if result.error is not None:
                    errors[place] = str(result.error)
                    continue
                (localization,) = result.found.values()
                absent = zip(localization.names, localization.reasons, strict=True)
                reasons.setdefault(place, []).extend(f"{name}: {why}" for name, why in absent if why is not None)
                of_task = shapes.setdefault(place, [])
                for control in labelling.controls:
                    of_task += _shapes(localization, control, key, len(of_task))
        made: list[dict[str, Any] | None] = [None] * len(tasks)
        empty = list[str]()
        for place, of_task in shapes.items():
            if place in errors:
                continue
            # Tasks can be sorted by their least certain shape.
            score = {"score": min(shape["score"] for shape in of_task)} if of_task else {}
            made[place] = {"model_version": version, "result": of_task, **score}
            if not of_task:
                why = "; ".join(reasons[place][:MOST_REASONS])
                empty.append(f"{_name(tasks[place], place)}: nothing was found: {why}")
        return Predictions(made, errors, empty, version)

    def _image(self, task: Task, key: str) -> Image.Image:
        address = task.data.get(key)
        if not isinstance(address, str) or not address:
            raise InputError(f"expected the address of a picture in {key!r}, found none: check the task")
        with self._pictures.picture(address) as path:
            try:
                return load(path, max_pixels=self._max_pixels).image
            except InputError as error:  # a visitor must not learn where files lie on this machine
                raise InputError(str(error).removeprefix(f"{path}: ")) from None


def _name(task: Task, place: int) -> str:
    """A task in a message."""
    return f"task {short(str(place + 1 if task.id is None else task.id))}"


def _shapes(localization: Localization, control: Control, key: str, before: int) -> list[dict[str, Any]]:
    """What a control gets of one picture; ids go on from those before."""
    size: tuple[int, int] = localization.image.size
    masks = {} if control.kind == "rectanglelabels" else dict(localization.box_masks())

    shapes: list[dict[str, Any]] = []
    for to in (to for to, of_picture in control.pictures.items() if of_picture == key):
        columns = zip(localization.boxes.score.tolist(), localization.boxes.label.tolist(), strict=True)
        for box, (score, name) in enumerate(columns):
            if name not in control.labels or (masks and not masks[box].any()):
                continue
            shape = rectangle_shape(localization.boxes.xyxy[box].astype(float).tolist(), size)
            if masks:
                shape = polygon_shape(merged(masks[box], "edges", max(1.0, COARSE * max(masks[box].shape))), size)
            ends, number = (control.name, to), f"c{before + len(shapes)}"
            shapes.append(region(number, control.kind, ends, size, shape, control.labels[name], score))
    return shapes
