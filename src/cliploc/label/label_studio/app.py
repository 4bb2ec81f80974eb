"""Label Studio's ML backend: its tasks' pictures, predictions, and the routes of label-studio-ml's SDK."""

import asyncio
import base64
import hashlib
import http.client
import json
import re
import tempfile
import threading
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, unquote

from msgspec import Meta, Struct
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from cliploc import __version__
from cliploc.boxes.masks import merged
from cliploc.errors import CliplocError, InputError, UsageError
from cliploc.find import memory, prepare, prompts
from cliploc.find.learnt import load_learnt, misfit
from cliploc.formats.labelstudio import KINDS, Kind, polygon_shape, rectangle_shape, region
from cliploc.images.reading import load
from cliploc.label.editor.review_folder import ReviewFolder
from cliploc.label.results import LEARNT
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.options import Options
from cliploc.web.server import Gate, Hosts, RefusedError, body_of

LOCAL_FILES = "/data/local-files/?"
STORED = ("/data/", "/storage-data/")  # where Label Studio serves pictures
DATA = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
JWT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")  # a personal access token, which is exchanged for one that expires
SECONDS = 20.0  # without an answer
AS_IS = "/%!$&'()*+,;=:@?~"  # in a path or a query; other characters are sent in percent
LONGEST = 80  # characters of an address in a message


class PictureSource:
    """Where task pictures may come from: below `folder`, or of Label Studio's `url`, with its token."""

    def __init__(
        self, folder: Path | None = None, url: str | None = None, token: str | None = None, max_bytes: int = 20_000_000
    ) -> None:
        if folder is not None and not folder.is_dir():
            raise UsageError(f"expected --pictures as a folder, got {folder}: check the path")
        self._folder = None if folder is None else folder.resolve()
        self._studio = None if url is None else url.rstrip("/")
        if url is not None and not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", url):
            raise UsageError(f"expected --label-studio-url as an address such as http://localhost:8080, got {url!r}")
        self._token, self._max_bytes = token, max_bytes
        self._opener = urllib.request.build_opener(_NoRedirects)

    @contextmanager
    def picture(self, address: str) -> Iterator[Path]:
        """The file of a task's picture; what had to be stored for it is removed at the end."""
        if DATA.match(address):
            try:
                content = base64.b64decode(address.partition(",")[2], validate=True)
            except ValueError:
                raise InputError("its data is not base64: import the picture again") from None
            self._check_size("its data", len(content))
        elif (local := self.local(address)) is not None:
            yield local
            return
        else:
            content = self._fetched(address)
        with tempfile.TemporaryDirectory(prefix="cliploc-label-studio-") as folder:
            path = Path(folder, "picture")
            try:
                path.write_bytes(content)
            except OSError as error:
                raise InputError(f"cannot be stored for a moment: {error.strerror}: make room") from None
            yield path

    def local(self, address: str) -> Path | None:
        """The file below `folder` that an address leads to; None of other addresses."""
        _, found, query = address.partition(LOCAL_FILES)
        plain = address if "://" not in address and not address.startswith("/") else ""
        name = parse_qs(query).get("d", [""])[0] if found else plain
        if not name or self._folder is None:
            return None
        try:
            path = (self._folder / name.lstrip("/")).resolve()
            exists, inside = path.is_file(), self._folder in path.parents
        except (OSError, ValueError, RuntimeError):  # the last of links in a circle
            exists, inside = False, True
        if not inside:
            raise InputError(f"{short(name)}: lies outside of the folder of --pictures: it is not read")
        if not exists:
            raise InputError(f"{short(name)}: no such file below the folder of --pictures: check the path")
        self._check_size(short(name), path.stat().st_size)
        return path

    def _check_size(self, name: str, size: int) -> None:
        if size > self._max_bytes:
            most = self._max_bytes / 1e6
            raise InputError(f"{name}: more than {most:g} million bytes: make it smaller, or raise --max-megabytes")

    def _fetched(self, address: str) -> bytes:
        name, studio = short(address), self._studio
        if studio is None:
            raise InputError(
                f"{name}: not fetched: start with --pictures DIR for local files, or --label-studio-url for those that "
                "Label Studio has"
            )
        path = address.removeprefix(studio)
        if not path.startswith(STORED) or re.search(r"\.\.|\\", unquote(unquote(path))):
            allowed = f"pictures of {studio}, below {' or '.join(STORED)}"
            raise InputError(f"{name}: not fetched: only {allowed}, are allowed")
        try:
            content = self._read(f"{studio}{quote(path, AS_IS)}", headers=self._authorization(name, studio))
        except urllib.error.HTTPError as error:
            advice = ": check the token" if error.code in (401, 403) else ""
            reason = short(str(error.reason))
            raise InputError(f"{name}: Label Studio answered with {error.code} {reason}{advice}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = short(str(getattr(error, "reason", None) or error))
            raise InputError(f"{name}: not fetched from {studio}: {reason}") from None
        self._check_size(name, len(content))
        return content

    def _read(self, url: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> bytes:
        request = urllib.request.Request(url, body, dict(headers))
        with self._opener.open(request, timeout=SECONDS) as answer:
            content: bytes = answer.read(self._max_bytes + 1)
            return content

    def _authorization(self, name: str, studio: str) -> dict[str, str]:
        if not self._token or not JWT.fullmatch(self._token):
            return {"Authorization": f"Token {self._token}"} if self._token else {}
        body = json.dumps({"refresh": self._token}).encode()
        try:
            answer = self._read(f"{studio}/api/token/refresh", body, {"Content-Type": "application/json"})
            return {"Authorization": f"Bearer {json.loads(answer)['access']}"}
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
            raise InputError(
                f"{name}: Label Studio rejected the personal access token ({short(str(error))}): create a new one"
            ) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, as it may lead anywhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Returns None, which makes the redirect an `HTTPError`."""


def short(text: str) -> str:
    """A text from a task or an answer as it may stand in a message: in one line, and not long."""
    line = "".join(letter if letter.isprintable() else "�" for letter in text[: LONGEST + 1])
    return line if len(text) <= LONGEST else f"{line[:LONGEST]}…"


# ---------------------------------------------------------------------------------------------------------- predictions
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


# --------------------------------------------------------------------------------------------------------------- routes
MOST_TASKS = 1_000  # of one request; Label Studio sends a hundred
Say = Callable[[str], None]
SENT = "what Label Studio sends"


class PredictRequest(Struct):
    """The body of /predict."""

    tasks: Annotated[list[Task], Meta(max_length=MOST_TASKS)]
    label_config: str


class SetupRequest(Struct):
    """The body of /setup."""

    schema: str


def application(
    predictor: Predictor,
    hosts: Hosts,
    auth: tuple[str, str] | None = None,  # basic authentication, which Label Studio has for ML backends
    max_bytes: int = 64_000_000,
    queue: int = 32,
    say: Say = print,  # is called with each line that a user may want to read
    drafts: ReviewFolder | None = None,
) -> Gate:
    """The backend as an ASGI application; more requests for predictions than may wait are refused."""
    waiting = 0
    connected = list[str]()  # the lines on the last interface: Label Studio sends it again with each task
    turn = asyncio.Lock()  # so that requests that wait for predictions take no thread away from the others

    async def version() -> str:
        return await asyncio.to_thread(lambda: predictor.version)  # which may have learnt since

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "UP", "model_class": "cliploc", "model_version": await version()})

    async def setup(request: Request) -> JSONResponse:
        labelling = await asyncio.to_thread(read_labelling, (await body_of(request, SetupRequest, SENT)).schema)
        unknown = await asyncio.to_thread(predictor.unknown, labelling)
        nonlocal connected
        lines = [f"connected: {', '.join(labelling.entries)}"]
        lines += [f"never gets boxes: {reason}" for reason in unknown.values()]
        for line in lines if lines != connected else ():
            say(line)
        connected = lines
        return JSONResponse({"model_version": await version()})

    async def predict(request: Request) -> JSONResponse:
        nonlocal waiting
        message = await body_of(request, PredictRequest, SENT)
        labelling = await asyncio.to_thread(read_labelling, message.label_config)
        if waiting > queue:
            raise RefusedError(503, "Too many requests wait for predictions: try again in a minute.")
        waiting += 1
        try:
            async with turn:
                made = await asyncio.to_thread(predictor, message.tasks, labelling)
        finally:
            waiting -= 1
        for line in (*made.errors.values(), *made.empty):
            say(line)
        if made.errors and not any(made.results):
            more = f" (and {len(made.errors) - 1:,} more tasks)" if len(made.errors) > 1 else ""
            raise RefusedError(422, f"{next(iter(made.errors.values()))}{more}")
        # A task without a prediction has an empty list of them, so that an error is not stored as "nothing there".
        results = [[] if result is None else result for result in made.results]
        return await asyncio.to_thread(JSONResponse, {"results": results, "model_version": made.version})

    async def webhook(request: Request) -> JSONResponse:
        event = await body_of(request, Event, SENT)
        lines = ["it learns with --learn only"]
        if drafts is not None:
            lines = await asyncio.to_thread(learn, drafts, event, predictor)
            for line in lines:
                say(line)
        return JSONResponse({"status": "ok", "result": "; ".join(lines)}, 201)

    async def versions(_: Request) -> JSONResponse:
        return JSONResponse({"versions": [await version()]})

    async def wrong(_: Request, error: Exception) -> JSONResponse:
        status = error.status if isinstance(error, RefusedError) else 400 if isinstance(error, UsageError) else 500
        if isinstance(error, UsageError):  # Label Studio itself shows no more than the status
            say(str(error))
        return JSONResponse({"error": str(error), "detail": str(error)}, status)

    routes = [
        Route("/", health),
        Route("/health", health),
        Route("/setup", setup, methods=["POST"]),
        Route("/predict", predict, methods=["POST"]),
        Route("/webhook", webhook, methods=["POST"]),
        Route("/versions", versions, methods=["GET", "POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={CliplocError: wrong, RefusedError: wrong})
    return Gate(app, hosts, auth=auth, max_body=max_bytes)


ANNOTATED = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED")


class Event(Struct):
    """The body of /webhook, as far as it is used."""

    action: str = ""
    task: Any = {}
    annotation: Any = None  # only `ANNOTATED` has one with its task; ANNOTATIONS_CREATED has lists of both


def learn(folder: ReviewFolder, event: Event, predictor: Predictor) -> list[str]:
    """Takes an event, learns in the background if it is time; problems are only lines, as Label Studio waits."""
    lines = list[str]()
    try:
        if event.action in ANNOTATED and isinstance(event.task, dict):
            task = {**event.task, "annotations": [event.annotation]}
            read = folder.correct([task], predictor.files_of(event.task))
            lines += [f"{name}: corrected" for name in read.pictures]
            lines += [f"{short(name)}: nothing is learnt from it: {why}" for name, why in read.problems.items()]
        elif event.action == "START_TRAINING":
            folder.learning.now()
        else:
            return []
    except CliplocError as error:
        lines.append(str(error))
    return [*lines, folder.learning.message()]
