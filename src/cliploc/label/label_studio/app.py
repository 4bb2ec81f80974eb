"""Label Studio's ML backend over HTTP: the routes of label-studio-ml's SDK behind the limits of a server."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from cliploc.errors import CliplocError, UsageError
from cliploc.label.editor.review_folder import ReviewFolder
from cliploc.label.label_studio.predictor import Predictor, Task, read_labelling
from cliploc.label.label_studio.task_pictures import short
from cliploc.web.guard import Gate, Hosts, RefusedError

MOST_TASKS = 1_000  # of one request; Label Studio sends a hundred
Say = Callable[[str], None]
T = TypeVar("T")


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

    # What a request holds is read off the event loop, which would else answer nobody meanwhile.
    async def read(request: Request, kind: type[T]) -> T:
        try:
            return await asyncio.to_thread(msgspec.json.decode, await request.body(), type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RefusedError(400, f"expected what Label Studio sends to {request.url.path}, got {error}") from None

    async def version() -> str:
        return await asyncio.to_thread(lambda: predictor.version)  # which may have learnt since

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "UP", "model_class": "cliploc", "model_version": await version()})

    async def setup(request: Request) -> JSONResponse:
        labelling = await asyncio.to_thread(read_labelling, (await read(request, SetupRequest)).schema)
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
        message = await read(request, PredictRequest)
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
        event = await read(request, Event)
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
