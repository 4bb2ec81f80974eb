"""What the page asks and is shown: `/api/show` and `/api/menu`, for programs `/api/localize` and `/api/files`; HTML."""

import asyncio
import json
import re
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from cliploc import CliplocError, Localization, Reporter, UsageError
from cliploc.draw.colours import NAME_COLOURS
from cliploc.draw.html import Templates, count, data_uri, embedded
from cliploc.draw.overlay import draw_names, file_name, fit_within, heat_layer, heatmap_alt, scaled
from cliploc.find.memory import LruCache
from cliploc.find.recipes import Recipe
from cliploc.images.reading import picture_bytes
from cliploc.methods import find
from cliploc.support.process import out_of_memory
from cliploc.support.reporter import BANK
from cliploc.web import downloads
from cliploc.web.runs import Run, StoppedError
from cliploc.web.server import RefusedError, body_of
from cliploc.web.service import PAGE_SIDE, SearchResult, Service, slider_values, title_of
from cliploc.web.settings import LISTS, NONE, Settings, command_lines, from_mapping, from_query, python_lines, to_query
from cliploc.web.uploads import MAX_AGE, Store

EVERY = 0.5  # seconds between two status lines
LOOK_BYTES = 128 * 2**20  # of all visitors' last results; a search for 120 heatmaps has 49 MB of them
STREAMED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy must not hold lines back
PICTURES = ("picture", "exemplar")  # the fields that hold a picture, or the id of one
VISITOR = re.compile("[0-9a-f]{32}")  # the page's name for itself, which nobody can guess
MOST_FIELDS = 40
MOST_FIELD_BYTES = 40_000  # of a field that is no file

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Answer = dict[str, Any]
Maker = Callable[[SearchResult, Settings, Reporter], Answer]


@dataclass(frozen=True)
class Question:
    """A request, read."""

    ids: Mapping[str, str]  # field of `PICTURES` → id of the picture that it holds, which is stored
    picture: str | None  # the photograph's file; None where there is none
    exemplar: str | None  # the same of the picture that stands for a name
    visitor: str  # the page's name for itself; "" of a program
    settings: Settings  # the other fields


class Answers:
    """Answers requests; the gate before it has checked host, password and size."""

    def __init__(self, service: Service, store: Store, debug: bool) -> None:
        self._service, self._store, self._debug = service, store, debug
        self.looks = LruCache[SearchResult](LOOK_BYTES, MAX_AGE)  # each visitor's last one

    def answering(self, handler: Handler) -> Handler:
        """A handler whose errors are answers: a status, and a sentence under "error"."""

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except ClientDisconnect:  # nobody reads an answer
                return JSONResponse({"error": ""}, 408)
            except Exception as error:
                refusal = self._refusal(error)
                return JSONResponse({"error": str(refusal)}, refusal.status)

        return answer

    def _refusal(self, error: Exception) -> RefusedError:
        """An error as a status and one sentence for the visitor."""
        if isinstance(error, RefusedError):
            return error
        if isinstance(error, CliplocError):
            return RefusedError(503 if isinstance(error, StoppedError) else 422, str(error))
        if self._debug:
            traceback.print_exception(error, file=sys.stderr)
        if out_of_memory(error):
            return RefusedError(500, "not enough memory on the server: use a smaller picture, fewer names or scales")
        name = type(error).__name__
        return RefusedError(500, f"an error in cliploc ({name}): start the server with --debug to see it there")

    # ----------------------------------------------------------------------------------------------------- addresses
    async def localize(self, request: Request) -> Response:
        """The document of `--json`."""
        return JSONResponse(await self._computed(request, self._document))

    async def files(self, request: Request) -> Response:
        """Writes the files to download."""
        return JSONResponse(await self._computed(request, self._files))

    async def show(self, request: Request) -> Response:
        """Lines of JSON: status every half second, at last what the page shows."""
        question, run = await self._begun(request, self._drawn)
        return StreamingResponse(self._lines(question, run), media_type="application/x-ndjson", headers=STREAMED)

    async def menu(self, request: Request) -> Response:
        """What the page offers for the settings of an address, and the values of its controls."""
        settings = from_query(request.url.query)
        if settings.model in self._service.offers:
            await self._loaded(settings)
        return JSONResponse(await asyncio.to_thread(menu_of, self._service, settings))

    # ---------------------------------------------------------------------------------------------------------- runs
    async def _begun(self, request: Request, make: Maker) -> tuple[Question, Run[Answer]]:
        """Reads a question, and starts its work."""
        question = await _question_in(request, self._store)
        if question.picture is None and not question.visitor:
            raise RefusedError(422, "expected a picture, got none: send a file, or the id of one, as picture")
        if question.picture is not None:
            await self._loaded(question.settings)

        def work(reporter: Reporter) -> Answer:
            look, settings = self._look(question, reporter)
            return make(look, settings, reporter) | {"ids": question.ids}

        runs = self._service.redraws if question.picture is None else self._service.searches
        return question, runs.begin(question.visitor, work)

    async def _loaded(self, settings: Settings) -> None:
        """Waits for the model; who leaves does not end it for the others."""
        await asyncio.shield(asyncio.wrap_future(self._service.load(settings.model)))

    async def _computed(self, request: Request, make: Maker) -> Answer:
        """Waits for the work; that of a client that leaves is stopped."""
        _, run = await self._begun(request, make)
        answer, left = asyncio.wrap_future(run.future), asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return answer.result()
        finally:
            run.stop()
            left.cancel()

    async def _lines(self, question: Question, run: Run[Answer]) -> AsyncIterator[bytes]:
        """The lines of an answer. A visitor who leaves, or presses Stop, ends them, and with them the work."""
        answer = asyncio.wrap_future(run.future)
        try:
            while not (await asyncio.wait((answer,), timeout=EVERY))[0]:
                seconds = None if run.began is None else time.monotonic() - run.began
                yield msgspec.json.encode({"status": searching(run.steps, run.bank, seconds)}) + b"\n"
            last = answer.result()
        except Exception as error:
            last = {"status": status(str(self._refusal(error)), "problem"), "ids": question.ids}
        finally:
            run.stop()
        yield msgspec.json.encode({"done": True, **last}) + b"\n"

    def _look(self, question: Question, reporter: Reporter) -> tuple[SearchResult, Settings]:
        """A search, or the visitor's last one; and the settings of its boxes."""
        settings, last = question.settings, self.looks.get(question.visitor)
        if question.picture is not None:
            look = self._service.look(question.picture, settings, last, reporter, question.exemplar)
            if question.visitor:
                self.looks.keep(question.visitor, look, look.size)
            return look, settings
        if last is None:
            raise UsageError("There are no results any longer: press Find.")
        if any(getattr(settings, key) != getattr(last.settings, key) for key in ("model", "compare", "refine")) or (
            (settings.method or last.settings.method) != last.settings.method
        ):  # the sliders are not of the methods that ran
            raise UsageError("Press Find to search with these settings.")
        return last, last.settings.with_live(settings)

    # ------------------------------------------------------------------------------------------------------- answers
    def _document(self, look: SearchResult, settings: Settings, _: Reporter) -> Answer:
        results = look.cut(settings)
        return downloads.document(self._full_size(look, results), settings, look.ran(settings))

    def _files(self, look: SearchResult, settings: Settings, reporter: Reporter) -> Answer:
        folder = self._store.new_folder()
        results = self._full_size(look, look.cut(settings))
        paths = downloads.write_files(folder, results, settings, look.offer.label, reporter, look.ran(settings))
        files = [
            {"name": path.name, "address": f"/files/{folder.name}/{quote(path.name)}", "bytes": path.stat().st_size}
            for path in paths
        ]
        return {"files": files}

    def _full_size(self, look: SearchResult, results: Mapping[str, Localization]) -> dict[str, Localization]:
        """Results with the photograph at its own size, for masks and what is drawn in it."""
        photograph = self._service.read(look.path).image
        return {method: replace(result, image=photograph) for method, result in results.items()}

    def _drawn(self, look: SearchResult, settings: Settings, _: Reporter) -> Answer:
        """A search's results with the boxes of these settings, and the script, command and link that give the same."""
        results, ran = look.cut(settings), look.ran(settings)
        file = next(iter(results.values())).source
        rules = [(look.offer.arguments_of(method), round(tau, 4)) for method, tau in look.rules(settings)]
        lines = (settings, file, look.offer.arguments, rules, Path(look.exemplar).name)
        linked = replace(  # without what the page would choose by itself
            settings,
            model="" if settings.model == next(iter(self._service.offers)) else settings.model,
            method=None if settings.method == self._service.menu(settings.model).default else settings.method,
        )
        pictures = downloads.document(results, replace(settings, masks=False), ran)["pictures"]
        return {
            "status": status(summary(results)),
            "figures": results_html(results, settings.opacity, ran, settings.masks),
            "json": json.dumps(pictures, ensure_ascii=False, indent=1, allow_nan=False),
            "python": python_lines(*lines),
            "command": command_lines(*lines),
            "address": f"?{to_query(linked)}",
        }


# ------------------------------------------------------------------------------------------------------- questions
async def _question_in(request: Request, store: Store) -> Question:
    """Reads a request, and stores its pictures."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        fields = await body_of(request, dict[str, Any], "a request as a JSON object")
        return await run_in_threadpool(_question, fields, store)
    if kind != "multipart/form-data":
        raise RefusedError(415, "expected multipart/form-data or application/json")
    try:
        reading = request.form(max_files=len(PICTURES), max_fields=MOST_FIELDS, max_part_size=MOST_FIELD_BYTES)
        async with reading as form:
            fields = dict(form.multi_items())
            if len(fields) < len(form.multi_items()):
                raise RefusedError(422, "expected each field once: write names as cat, dog")
            return await run_in_threadpool(_question, fields, store)
    except HTTPException as error:
        raise RefusedError(422, f"expected a form: {error.detail}") from None


def _question(fields: dict[str, Any], store: Store) -> Question:
    """The fields of a form, or the keys of a JSON object, by what they are."""
    pictures: dict[str, str | UploadFile] = {}
    for field in PICTURES:
        sent = fields.pop(field, None)
        if sent in (None, "") or (isinstance(sent, UploadFile) and not sent.filename and not sent.size):
            continue  # null, an empty text, or what a browser sends where no file was chosen
        if not isinstance(sent, str | UploadFile):
            raise RefusedError(422, f"expected {field} as a file or as the id of one")
        pictures[field] = sent
    visitor = fields.pop("visitor", "")
    if visitor != "" and not (isinstance(visitor, str) and VISITOR.fullmatch(visitor)):
        raise RefusedError(422, "expected visitor as 32 hexadecimal digits: reload the page")
    settings = from_mapping(fields)  # before a file is stored
    ids = {
        field: sent if isinstance(sent, str) else store.keep(sent.file, sent.filename or "")
        for field, sent in pictures.items()
    }
    files = {field: str(store.picture(number)) for field, number in ids.items()}
    exemplar = files.get("exemplar")
    return Question(ids, files.get("picture"), exemplar, visitor, settings.with_exemplar(exemplar))


# -------------------------------------------------------------------------------------------------- what the page shows
JPEG_QUALITY = 85
LAYER_SIDE = 320  # pixels of heat that is laid over the picture, where it is enlarged: it is smooth
VERDICTS = ("found", "unsure", "not found")
Status = dict[str, Any]  # of a status line: "kind" and "text", and of a search that is counted "progress" and "counted"
HERE = Path(__file__).parent
TEMPLATES = Templates(HERE / "templates", HERE / "static")


def menu_of(service: Service, settings: Settings) -> dict[str, Any]:
    """The menus for a model, the values of all controls by an address, and the method's own of sliders without one."""
    problem = ""
    try:
        label, menu = service.offer(settings.model).label, service.menu(settings.model)
    except CliplocError as error:
        problem, label = str(error), next(iter(service.offers))
        menu = service.menu(label)
    method = settings.method if settings.method in (*menu.recipes, *menu.methods) else menu.default
    refine = tuple(name for name in settings.refine or () if name in menu.refinements)
    usable = replace(
        settings,
        masks_by=settings.masks_by if settings.masks_by in service.mask_sources else "heat",
        model=label,
        method=method,
        compare=tuple(name for name in settings.compare if name in menu.methods),
        refine=refine if refine or settings.refine == () else None,
    )
    values = usable.of_page()
    values |= {name: values[name].split(",") for name in LISTS}
    methods = [(name, find(name).title) for name in menu.methods]
    recipes = [(name, f"{name.replace(':', ': ')} – {_parts(recipe)}") for name, recipe in menu.recipes.items()]
    choices = {"method": recipes + methods, "compare": methods}
    titles = {"heat": "heat", "grabcut": "GrabCut", "sam": "Segment Anything"}
    sources = [name.partition(":")[0] for name in ("heat", *service.mask_sources)]
    choices["masks_by"] = [(name, titles[name]) for name in sources]
    choices["refine"] = [(name, name) for name in (NONE, *menu.refinements)]
    choices["method"].sort(key=lambda choice: choice[0] != menu.default)  # what runs by default comes first
    sliders = slider_values(service.defaults(usable, method))
    return {"problem": problem, "choices": choices, "values": values, "own": sliders}


def _parts(recipe: Recipe) -> str:
    """The parts of a recipe in a few words."""
    options = recipe.options
    scales = options.get("scales", ())
    words = [find(recipe.method).title, *options.get("refine", ())]
    if scales:
        words.append(f"scale{'s' if len(scales) > 1 else ''} {' and '.join(f'{scale:g}' for scale in scales)}")
    words += [word for name, word in (("windows", "windows"), ("flip", "mirrored")) if options.get(name)]
    return ", ".join(words)


def status(text: str, kind: str = "done") -> Status:
    """A status line: "done", "busy", or a "problem", which a screen reader reads out at once."""
    return {"kind": kind, "text": text}


def searching(steps: tuple[int, int], bank: tuple[int, int], seconds: float | None) -> Status:
    """The status line of a search: masked pictures, or names of the bank, done and left; None: it waits for a turn."""
    if seconds is None:
        return status("Waiting for a turn …", "busy")
    if bank[1]:
        text = f"Once for this model: {bank[0]:,} of {sum(bank):,} {BANK} done, {seconds:.0f} s"
        return status(text, "busy") | {"progress": bank[0] / sum(bank), "counted": BANK}
    if not steps[0]:
        return status("Searching …", "busy")
    text = f"Searching: {steps[0]:,} of about {sum(steps):,} masked pictures done, {seconds:.0f} s"
    return status(text, "busy") | {"progress": steps[0] / sum(steps), "counted": "masked pictures"}


def summary(results: Mapping[str, Localization]) -> str:
    """One line for each method's result: the names found, their boxes, and how many names are unsure."""
    lines = []
    for method, result in results.items():
        found_names, unsure = int(result.found.sum()), len(set(result.unsure.label.tolist()))
        line = f"{title_of(method, result)}: " if len(results) > 1 else ""
        line += f"{found_names} of {count(len(result.names), 'name')} found, {count(len(result.boxes), 'box', 'boxes')}"
        lines.append(f"{line}, {unsure} unsure" if unsure else line)
    return " · ".join(lines)


def results_html(
    results: Mapping[str, Localization], opacity: float, recipe: Recipe | None = None, masks: bool = False
) -> str:
    """All names in one picture, then a figure for each name that is found; scores and boxes are folded away."""
    names, several = next(iter(results.values())).names, len(results) > 1
    titles = {method: title_of(method, result) if several else "" for method, result in results.items()}
    small = {method: scaled(result, fit_within(result.image.size, PAGE_SIDE)) for method, result in results.items()}
    best = [min(VERDICTS.index(result.verdict(index)) for result in results.values()) for index in range(len(names))]
    order = sorted(range(len(names)), key=best.__getitem__)  # those that are found come first
    figures = [i for i in order if VERDICTS[best[i]] == "found"]
    if len(figures) == 1 and not several:  # the picture of all names shows its heat
        figures = []
    groups = [
        [_figure_of_name(results[method], small[method], index, opacity, titles[method], masks) for method in results]
        for index in figures
    ]
    if several and len(names) > 1:
        groups.insert(0, [_figure_of_all(small[method], opacity, titles[method], masks) for method in results])
    return TEMPLATES.render(
        "results.html",
        several=several,
        stages=[] if several else [_stage(small[method], order, opacity, masks) for method in results],
        groups=groups if several else [[figure for group in groups for figure in group]],
        absent=[names[i] for i in order if VERDICTS[best[i]] == "not found"],
        recipe=None if recipe is None else (recipe.name, recipe.flags),
        notes=list(dict.fromkeys(note for result in results.values() for note in result.notes)),
        rows=[_row(result, index, title_of(method, result)) for method, result in results.items() for index in order],
    )


def _stage(small: Localization, order: Sequence[int], opacity: float, masks: bool) -> dict[str, Any]:
    """The picture of all names: its boxes, and the heat of each name, which shows where somebody points at it."""
    width, height = small.image.size
    layers = scaled(small, fit_within(small.image.size, LAYER_SIDE))
    everything = list(range(len(small.names)))
    photo = draw_names(small, everything, opacity, boxes=False, masks=True) if masks else small.image.convert("RGB")
    boxes, sure = small.visible_boxes, len(small.boxes)
    columns = zip(boxes.xyxy.tolist(), boxes.score.tolist(), boxes.label.tolist(), strict=True)
    alt = ", ".join(name for name, found in zip(small.names, small.found, strict=True) if found) or "none"
    return {
        "photo": embedded(photo, f"{file_name(small)}; found: {alt}", quality=JPEG_QUALITY),
        "names": [
            {
                "index": index,
                "name": small.names[index],
                "place": index % len(NAME_COLOURS),
                "verdict": small.verdict(index),
                "boxes": int((boxes.label == index).sum()),
                "heat": ""
                if masks
                else data_uri(picture_bytes(heat_layer(layers, index, opacity), "PNG"), "image/png"),
                "alt": heatmap_alt(small, index),
            }
            for index in order
        ],
        "boxes": [
            {
                "index": label,
                "name": small.names[label],
                "place": label % len(NAME_COLOURS),
                "score": score,
                "unsure": number >= sure,
                "at": [100 * edge / side for edge, side in zip(xyxy, (width, height) * 2, strict=True)],
            }
            for number, (xyxy, score, label) in enumerate(columns)
        ],
    }


def _figure_of_name(
    result: Localization, small: Localization, index: int, opacity: float, method: str, masks: bool
) -> dict[str, Any]:
    image = draw_names(small, [index], opacity, masks=masks)
    boxes = int((result.visible_boxes.label == index).sum())
    verdict = result.verdict(index)
    outcome = verdict if verdict == "not found" else f"{verdict}, {count(boxes, 'box', 'boxes')}"
    title = " · ".join(filter(None, (result.names[index], method)))
    picture = embedded(image, heatmap_alt(result, index, method, masks), quality=JPEG_QUALITY)
    return {"picture": picture, "title": title, "verdict": outcome, "legend": ()}


def _figure_of_all(small: Localization, opacity: float, method: str, masks: bool) -> dict[str, Any]:
    image = draw_names(small, list(range(len(small.names))), opacity, masks=masks)
    names = ", ".join(name for name, found in zip(small.names, small.found, strict=True) if found) or "none"
    legend = [(name, index % len(NAME_COLOURS)) for index, name in enumerate(small.names)]
    picture = embedded(image, f"All names by {method}; found: {names}", quality=JPEG_QUALITY)
    return {"picture": picture, "title": f"All names · {method}", "verdict": "", "legend": legend}


def _row(result: Localization, index: int, method: str) -> dict[str, Any]:
    boxes = result.visible_boxes.where(result.visible_boxes.label == index)
    columns = zip(boxes.xyxy.tolist(), boxes.score.tolist(), strict=True)
    scored = [(xyxy, result.score_text(index, score)) for xyxy, score in columns]
    row = {"name": result.names[index], "method": method, "verdict": result.verdict(index), "boxes": scored}
    values = {"cosine": result.scores[index], "presence": result.presence_text(index)}
    return {**row, **values, "reason": result.reasons[index]}
