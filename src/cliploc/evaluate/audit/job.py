"""`audit`: does a model look at the thing, or at what stands around it? docs/audit.md explains what it writes."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import numpy as arrays
from torch import Tensor

from cliploc import __version__
from cliploc.draw import captions
from cliploc.draw.html import Templates, count, embedded
from cliploc.draw.overlay import BOX_COLOUR, paint_map
from cliploc.errors import CliplocError, InputError, UsageError
from cliploc.evaluate.audit import measure
from cliploc.evaluate.audit.names import FEWEST, RELATED, STUFF, Name, Pair, leaning, told_apart
from cliploc.find import prompts
from cliploc.find.prepare import Request
from cliploc.find.presence import bank_names
from cliploc.formats.reading import PictureFinder, read_labels
from cliploc.images.reading import load, size_of
from cliploc.localizer import Localizer
from cliploc.options import Options
from cliploc.runs.engine import interrupt_message
from cliploc.runs.picture_files import FoundPictures, PictureFile, find_pictures, stamp
from cliploc.runs.store import FILE, Store, disk_errors
from cliploc.support.files import AnyPath, Inputs, csv_text, locked, user_path, write_bytes, write_json, write_text
from cliploc.support.reporter import SILENT, Reporter
from cliploc.values import Floats

SCHEMA_VERSION = 1
KIND, VERSION = "audit", 1
TABLES = (
    "CREATE TABLE prediction (picture TEXT PRIMARY KEY, digest TEXT NOT NULL, facts JSON TEXT NOT NULL, "
    "content BLOB NOT NULL)",  # the safetensors hold what is outside, the background alone [D], and the evidence
)
OUTPUTS = CSV, NAMES, JSON, PAGE = "pictures.csv", "names.csv", "audit.json", "audit.html"
SWAPPED = "swaps"  # folder of pictures
POOL = 24  # pictures whose features and pixels serve as backgrounds
TEMPLATES = Templates(Path(__file__).with_name("templates"))
ON_PAGE, PAIRS, SIDE = 40, 20, 240  # pictures and pairs on the page, and pixels of a picture's longer side
TrueBoxes = Mapping[str, Sequence[tuple[str, Sequence[float]]]]  # picture → names and boxes


@dataclass(frozen=True)
class Picture:
    """A prediction; a row of pictures.csv."""

    picture: str  # its path below the folder
    prediction: str
    runner_up: str  # the name that fits second best
    margin: float  # between their cosines
    box: str  # the thing: "found", "true", or "none": then nothing else is known
    x0: float
    y0: float
    x1: float
    y1: float
    outside: float | None  # share of the evidence outside the thing
    lean: float | None  # share of the cosine that goes with the background
    risk: float | None  # that the prediction is lost with another background
    baseline: float | None  # the same by the box's size and the margin alone
    swapped_1: str | None = None  # the prediction with the background of another picture
    swapped_2: str | None = None
    alone: str | None = None  # the prediction for the background alone


@dataclass(frozen=True)
class Audited:
    """The result of an audit; `pictures` and `names` are rows that pandas takes."""

    pictures: Sequence[Picture]  # the riskiest first; those without a known background last
    names: Sequence[Name]  # flagged ones first
    pairs: Sequence[Pair]  # told apart by the background alone, the surest first
    calibrated: bool  # whether a risk is a chance; else it ranks
    computed: int  # pictures that this call saw; the others were seen before
    failed: Mapping[str, str]  # picture → why it is not judged

    def judged(self) -> int:
        """How many pictures have a known background."""
        return sum(one.risk is not None for one in self.pictures)

    def table(self) -> list[list[str]]:
        """A row for each name of which enough is known; the first has titles."""
        rows = [["name", "pictures", "lean", "interval", "others", "risk", "", "around"]]
        for one in self.names:
            if one.lean is not None:
                numbers = [f"{one.lean:.2f}", f"{one.low:.2f} to {one.high:.2f}", f"{one.others:.2f}", f"{one.risk:.2f}"]
                flagged = "leans on the background" if one.flagged else ""
                rows.append([one.name, f"{one.pictures:,}", *numbers, flagged, one.surroundings])
        return rows

    def lines(self) -> list[str]:
        """What was judged, in sentences."""
        risk = "chance" if self.calibrated else "rank, not a chance: this model or these embeddings are not calibrated"
        return [
            f"{count(len(self.pictures), 'picture')}, {self.judged():,} with a known background; "
            f"{count(sum(one.flagged for one in self.names), 'name')} flagged of "
            f"{sum(one.lean is not None for one in self.names):,} with {FEWEST} or more of these pictures",
            f"the risk is a {risk}",
        ]

    def document(self) -> dict[str, Any]:
        """The result as in audit.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "cliploc_version": __version__,
            "calibrated": self.calibrated,
            "pictures": msgspec.to_builtins(self.pictures),
            "names": msgspec.to_builtins(self.names),
            "pairs": msgspec.to_builtins(self.pairs),
            "failed": [{"picture": name, "reason": reason} for name, reason in self.failed.items()],
        }


def audit(
    pictures: AnyPath | Sequence[AnyPath],
    names: Any,
    out: AnyPath | None = None,
    *,
    truth: AnyPath | None = None,
    swap: bool = False,
    seed: int = 0,
    reporter: Reporter = SILENT,
    **options: Any,
) -> Audited:
    """Judges whether predictions depend on the thing or on the background.

    Args:
        pictures: a folder with its sub-folders, a pattern such as "photos/**/*.jpg", a .txt list, or paths.
        names: what the model chooses from, as `Localizer.classify` takes them; or embeddings `{name: [D]}`, such as the
            rows of a trained head.
        out: a folder for the results; the same call in it computes only what is new. None: nothing is written.
        truth: true boxes, in any format that `cliploc check` reads; None: the found ones.
        swap: whether pixels are swapped, too: two other backgrounds, and the background alone.
        seed: of the choice of other backgrounds.
        reporter: gets the phases, the pictures to do and done, and each failed picture.
        **options: options of the `Localizer`: model, method, device …

    Returns:
        What was found.

    Raises:
        UsageError: pictures, names, boxes, a model or an option that cannot be used, or a folder of another run.
        DiskFullError: no room on the disk.
    """
    least = {"min_presence": 0.0} | ({} if "method" in options else {"recipe": "fast"})  # a thing always has a box
    chosen, target = Options.of(**{**least, **options}), None if out is None else user_path(out)
    found = find_pictures(pictures, target)
    if len(found.pictures) < 2:
        raise UsageError("expected two pictures or more, as each lends its background to others, got one: add some")
    true = {} if truth is None else _true_boxes(user_path(truth), found)
    with ExitStack() as stack:
        folder = target or Path(stack.enter_context(TemporaryDirectory()))
        if target is not None:
            outputs = [target / name for name in (FILE, *OUTPUTS)]
            Inputs([one.path for one in found.pictures]).check_outputs(outputs)
            if not outputs[0].exists() and (taken := [path.name for path in outputs if os.path.lexists(path)]):
                raise UsageError(f"{target} holds {', '.join(taken)}, not written by an audit: choose another --out")
        stack.enter_context(locked(folder))
        stack.enter_context(disk_errors(folder))
        auditor = measure.Auditor(Localizer(**chosen.changed()), names)
        store = stack.enter_context(Store(folder / FILE, KIND, VERSION, TABLES))
        texts = hashlib.sha256(auditor.texts.cpu().numpy().tobytes()).hexdigest()
        asked = {"names": list(auditor.names), "texts": texts, "swap": swap, "seed": seed}
        store.keep("settings", {**asked, **auditor.localizer.describe()})
        store.begin_session()
        work = _Audit(auditor, store, found, true, reporter, swap, seed, target)
        if target is not None:
            stack.enter_context(interrupt_message(folder, lambda: f"{work.computed:,} pictures"))
        work.run()
        audited = work.audited()
        if target is not None:
            reporter.phase("writing")
            work.write(audited, target)
    return audited


class _Audit:
    """The work of one call."""

    def __init__(
        self, auditor: measure.Auditor, store: Store, found: FoundPictures, true: TrueBoxes, reporter: Reporter,
        swap: bool, seed: int, target: Path | None,
    ) -> None:  # fmt: skip
        self._auditor, self._store, self._true, self._reporter = auditor, store, true, reporter
        self._swap, self._seed, self._target = swap, seed, target
        self._files = {one.id: one for one in found.pictures}
        self.computed, self._failed = 0, dict[str, str]()

    def run(self) -> None:
        """Sees what is not seen yet."""
        digests = {name: _digest(one, self._true.get(name, ())) for name, one in self._files.items()}
        done = dict(self._store.rows("SELECT picture, digest FROM prediction"))
        todo = [name for name in self._files if done.get(name) != digests[name]]
        self._reporter.phase("audit")
        self._reporter.start(len(todo), len(digests))
        if not todo:
            return
        pool = [name for name in self._store.get("pool", []) if name in self._files]
        if len(pool) < 2:
            order = np.random.default_rng(self._seed).permutation(sorted(self._files)).tolist()
            self._store["pool"] = pool = order[:POOL]
        lent = {str(seen.item.id): seen for seen in self._see(pool)}
        if len(lent) < 2:
            raise UsageError("expected two pictures that can be read, as each lends its background to others: add some")
        others = (seen for seen in self._see([name for name in todo if name not in pool]))
        for part in ((lent[name] for name in todo if name in lent), others):
            for seen in part:
                name = str(seen.item.id)
                facts, content = self._judged(seen, [lent[one] for one in pool if one in lent and one != name])
                with self._store.transaction():
                    statement = "INSERT OR REPLACE INTO prediction VALUES (?, ?, ?, ?)"
                    self._store.write(statement, name, digests[name], msgspec.json.encode(facts).decode(), content)
                self.computed += 1
                self._reporter.images(1)

    def _see(self, names: Sequence[str]) -> Iterator[measure.Seen]:
        requests = (Request(name, self._files[name].path, self._auditor.given, name) for name in names)

        def fail(name: str, error: CliplocError) -> None:
            self._failed[name] = str(error).removeprefix(f"{name}: ")
            self._reporter.failed(name, error)
            self._reporter.images(1)

        def true(name: str, prediction: str) -> Floats:
            boxes = self._true.get(name, ())
            own = [box for label, box in boxes if label == prediction] or [box for _, box in boxes]
            return np.array(own, float).reshape(-1, 4)

        return self._auditor.see(requests, true, Reporter(failed=fail))

    def _judged(self, seen: measure.Seen, lenders: Sequence[measure.Seen]) -> tuple[Picture, bytes]:
        """A prediction, and what is kept of it for the names and the page."""
        auditor, names = self._auditor, self._auditor.names
        x0, y0 = seen.xyxy[:, :2].min(axis=0).tolist()
        x1, y1 = seen.xyxy[:, 2:].max(axis=0).tolist()
        of_box = {"x0": round(x0, 2), "y0": round(y0, 2), "x1": round(x1, 2), "y1": round(y1, 2)}
        facts = {"prediction": names[seen.first], "runner_up": names[seen.second], "margin": seen.margin}
        size = auditor.texts.shape[1]
        kept = {key: np.zeros(size, np.float16) for key in ("around", "alone")}
        kept["heat"] = np.frombuffer(measure.heat_of(seen), np.uint8)
        if seen.box == "none" or seen.area() >= measure.FULL:  # nothing is known to be background
            unknown = dict.fromkeys(("outside", "lean", "risk", "baseline"))
            return Picture(str(seen.item.id), **facts, box="none", **of_box, **unknown), arrays.save(kept)
        rng = np.random.default_rng([self._seed, *str(seen.item.id).encode()])
        order = [lenders[i] for i in rng.permutation(len(lenders))]
        order.sort(key=lambda one: one.first == seen.first)  # those of another name first
        donors = [order[i % len(order)] for i in range(measure.DONORS + measure.SWAPS)]
        swapped = auditor.swapped(seen, donors[: measure.DONORS])
        risk, baseline = auditor.chances(auditor.facts(seen, swapped))
        own = float(seen.cosines[seen.first])
        bare = float((swapped[measure.DONORS : -1] @ auditor.texts[seen.first]).mean())
        kept["around"], kept["alone"] = (_half(one) for one in (auditor.surroundings(seen), swapped[-1]))
        more = {"outside": seen.outside(), "lean": (own - bare) / max(own, 1e-6), "risk": risk, "baseline": baseline}
        if self._swap:
            pixels = auditor.pixels(seen, donors[measure.DONORS :])
            best = (auditor.embed(pixels) @ auditor.texts.T).argmax(dim=1).tolist()
            more |= dict(zip(("swapped_1", "swapped_2", "alone"), (names[p] for p in best), strict=True))
            self._write_swaps(str(seen.item.id), pixels)
        return Picture(str(seen.item.id), **facts, box=seen.box, **of_box, **more), arrays.save(kept)

    def _write_swaps(self, name: str, pixels: Tensor) -> None:
        for number, one in enumerate(pixels) if self._target is not None else ():
            path = self._swapped_file(self._target, name, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(one.permute(1, 2, 0).cpu().numpy()).save(path, quality=90)

    @staticmethod
    def _swapped_file(target: Path, name: str, number: int) -> Path:
        parts = [part for part in Path(name).parts if part not in ("/", "..")]
        return target / SWAPPED / f"{Path(*parts)}.{('1', '2', 'alone')[number]}.jpg"

    def audited(self) -> Audited:
        """All predictions, names and pairs."""
        auditor, rows = self._auditor, list[Picture]()
        first, around, alone = list[int](), list[Any](), list[Any]()
        place = {name: p for p, name in enumerate(auditor.names)}
        judged = list[Picture]()
        for name, facts, content in self._store.each("SELECT picture, facts, content FROM prediction"):
            if name not in self._files or name in self._failed:
                continue
            rows.append(row := msgspec.json.decode(facts, type=Picture))
            if row.risk is not None:
                kept = arrays.load(content)
                judged.append(row)
                first.append(place[row.prediction])
                around.append(kept["around"])
                alone.append(kept["alone"])
        rows.sort(key=lambda row: (row.risk is None, -(row.risk or 0), row.picture))
        names, pairs = list[Name](), list[Pair]()
        if judged:
            of_first, texts = np.array(first), auditor.texts.float().cpu().numpy()
            bank, embedded_bank = self._bank()
            nearest = np.argsort(-(texts @ embedded_bank.T), axis=1)[:, : max(1, int(RELATED * len(bank)))]
            related = np.zeros((len(texts), len(bank)), bool)
            np.put_along_axis(related, nearest, True, axis=1)
            lean, risk = (np.array([getattr(row, key) for row in judged], float) for key in ("lean", "risk"))
            outside = np.array(around, np.float32) @ embedded_bank.T
            names = leaning(auditor.names, of_first, lean, risk, outside, bank, related)
            pairs = told_apart(auditor.names, of_first, np.array(alone, np.float32) @ texts.T)
        return Audited(rows, names, pairs, auditor.calibrated, self.computed, self._failed)

    def _bank(self) -> tuple[list[str], Any]:
        """Names of what may be around things, and their embeddings `[K, D]`."""
        localizer = self._auditor.localizer
        bank = list(dict.fromkeys([*STUFF, *(entry[0] for entry in bank_names())]))
        unknown = localizer.unknown_names(bank)
        bank = [name for name in bank if name not in unknown]
        return bank, localizer.embed_names(bank).float().cpu().numpy()

    def write(self, audited: Audited, out: Path) -> None:
        """Writes pictures.csv, names.csv, audit.json and audit.html."""
        for name, row, rows in ((CSV, Picture, audited.pictures), (NAMES, Name, audited.names)):
            write_text(out / name, csv_text([field.name for field in fields(row)], map(asdict, rows), "\r\n"))
        write_json(out / JSON, audited.document())
        worst = [row for row in audited.pictures if row.risk is not None][:ON_PAGE]
        shown = []
        for row in worst:
            heats = self._store.row("SELECT content FROM prediction WHERE picture = ?", row.picture)
            drawn = list[dict[str, Any]]()
            with suppress(InputError):  # a picture may be gone since it was seen
                heat = arrays.load(heats[0])["heat"].reshape(measure.HEAT) if heats else None
                drawn.append(embedded(_drawn(self._files[row.picture], row, heat), row.picture, quality=75))
            for number, name in enumerate((row.swapped_1, row.swapped_2, row.alone) if self._swap else ()):
                with suppress(InputError):
                    swapped = load(self._swapped_file(out, row.picture, number)).image
                    small = ImageOps.contain(swapped, (SIDE // 2, SIDE // 2))
                    drawn.append(embedded(small, f"swapped: {name}", quality=75))
            shown.append((row, drawn))
        page = TEMPLATES.render(
            "audit.html", title="Thing or background", lines=audited.lines(), table=audited.table(),
            pairs=audited.pairs[:PAIRS], every=len(audited.pairs), shown=shown, swap=self._swap,
        )  # fmt: skip
        write_text(out / PAGE, page)


def _half(values: Tensor) -> Any:
    return values.cpu().numpy().astype(np.float16)


def _digest(picture: PictureFile, boxes: Sequence[Any]) -> str:
    """Of all that a prediction depends on besides the settings."""
    return hashlib.blake2b(repr([stamp(picture), boxes]).encode(), digest_size=16).hexdigest()


def _true_boxes(labels: Path, found: FoundPictures) -> TrueBoxes:
    """The boxes of a set of labels that lie in pictures."""
    read = read_labels(labels)
    files = {one.id: one.path for one in found.pictures}
    find = PictureFinder(files, read.listed, {}, "no such picture")
    boxes = dict[str, list[tuple[str, Sequence[float]]]]()
    for entry in read.pictures:
        with suppress(ValueError, InputError):  # a picture that is not audited
            name = find(entry.names, entry.more)
            width, height = size = size_of(files[name])
            for box in entry.boxes(size, False):
                x0, y0, x1, y1 = np.clip(box.xyxy, 0, (width, height) * 2).tolist()
                if x1 > x0 and y1 > y0:
                    boxes.setdefault(name, []).append((box.name, (x0, y0, x1, y1)))
    if not boxes:
        raise UsageError(f"expected boxes of pictures below {found.root} in {labels}, found none: check both paths")
    return boxes


def _drawn(file: PictureFile, row: Picture, heat: Any) -> Image.Image:
    """The picture with the evidence, and the thing's box."""
    picture = load(file.path).image
    small = ImageOps.contain(picture, (SIDE, SIDE))
    if heat is not None:
        paint_map(small, heat)
    box = np.array([row.x0, row.y0, row.x1, row.y1]) * (small.width / picture.width)
    rectangle = captions.to_rectangle(box, small.size)
    captions.draw_box(small, rectangle, BOX_COLOUR, captions.line_width(small.size))
    return small
