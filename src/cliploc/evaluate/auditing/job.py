"""`audit`: does a model look at the thing, or at what stands around it? docs/audit.md explains what it writes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
from PIL import Image, ImageOps
from safetensors import numpy as arrays
from torch.nn import functional as F

from cliploc import __version__
from cliploc.draw import captions
from cliploc.draw.html import Templates, count, embedded
from cliploc.draw.overlay import BOX_COLOUR, paint_map
from cliploc.errors import CliplocError, UsageError
from cliploc.evaluate.auditing import measure
from cliploc.evaluate.auditing.names import FEWEST, STUFF, Name, Pair, leaning, told_apart
from cliploc.find import prompts
from cliploc.formats.reading import read_labels
from cliploc.options import Options
from cliploc.runs.labelled_set import with_pictures
from cliploc.runs.picture_files import PictureFile, find_pictures, stamp
from cliploc.runs.store import RunKind, Store
from cliploc.support.files import AnyPath, csv_text, user_path, write_json, write_text
from cliploc.support.reporter import SILENT, Reporter

SCHEMA_VERSION = 1
# The facts are all that a row depends on besides the settings; the vectors are safetensors.
TABLE = "CREATE TABLE picture (id TEXT PRIMARY KEY, facts TEXT, row TEXT, drawn TEXT, vectors BLOB NOT NULL)"
SAVE, DRAWN = "INSERT OR REPLACE INTO picture VALUES (?, ?, ?, ?, ?)", "SELECT drawn FROM picture WHERE id = ?"
OUTPUTS = CSV, NAMES, JSON, PAGE = "pictures.csv", "names.csv", "audit.json", "audit.html"
RUN = RunKind("audit", 2, TABLE, OUTPUTS)
POOL = 24  # pictures whose features and pixels serve as backgrounds
TEMPLATES = Templates(Path(__file__).with_name("templates"))
ON_PAGE, SIDE = 40, 240  # pictures on the page, and pixels of their longer side


@dataclass(frozen=True)
class Picture:
    """A prediction; a row of pictures.csv."""

    picture: str  # its path below the folder
    prediction: str
    runner_up: str  # the name that fits second best
    margin: float  # between their cosines
    box: str  # the thing: "found", "true", or "none": then no background is known
    x0: float
    y0: float
    x1: float
    y1: float
    outside: float | None = None  # share of the evidence outside the thing
    lean: float | None = None  # how far the background raises the prediction's cosine in other pictures
    risk: float | None = None  # that the prediction is lost with another background
    baseline: float | None = None  # the same by the box's size and the margin alone
    swapped_1: str | None = None  # the prediction with the background of another picture
    swapped_2: str | None = None
    alone: str | None = None  # the prediction for the background alone


@dataclass(frozen=True)
class Audited:
    """The result of an audit; `pictures` and `names` are rows that pandas takes."""

    pictures: Sequence[Picture]  # the riskiest first; those without a known background last
    names: Sequence[Name]  # flagged ones first
    pairs: Sequence[Pair]  # names that the background alone tells apart
    calibrated: bool  # whether a risk is a chance; else it ranks
    failed: Mapping[str, str]  # picture → why it is not judged

    def table(self) -> list[list[str]]:
        """A row for each name of which enough is known; the first has titles."""
        rows = [["name", "pictures", "lean", "interval", "others", "risk", "", "around"]]
        for one in self.names:
            if one.low is not None and one.high is not None and one.others is not None:
                lean, others, interval = f"{one.lean:.3f}", f"{one.others:.3f}", f"{one.low:.3f}…{one.high:.3f}"
                flagged = "leans" if one.flagged else ""
                numbers = (f"{one.pictures:,}", lean, interval, others, f"{one.risk:.2f}")
                rows.append([one.name, *numbers, flagged, one.surroundings])
        return rows

    def lines(self) -> list[str]:
        """What was judged, in sentences."""
        known, tested = sum(one.risk is not None for one in self.pictures), len(self.table()) - 1
        flagged = f"{count(sum(one.flagged for one in self.names), 'name')} flagged of {tested:,} with {FEWEST} or more"
        ranks = [] if self.calibrated else ["the risk only ranks: it is a chance for found boxes of `mini` alone"]
        return [f"{count(len(self.pictures), 'picture')}, {known:,} with a known background; {flagged}", *ranks]

    def document(self) -> dict[str, Any]:
        """The result as in audit.json."""
        about = {"schema_version": SCHEMA_VERSION, "cliploc_version": __version__, **msgspec.to_builtins(self)}
        return {**about, "failed": [{"picture": name, "reason": reason} for name, reason in self.failed.items()]}


def audit(
    pictures: AnyPath | Sequence[AnyPath], names: Any, out: AnyPath | None = None, *, truth: AnyPath | None = None,
    swap: bool = False, seed: int = 0, reporter: Reporter = SILENT, **options: Any,
) -> Audited:  # fmt: skip
    """Judges whether predictions depend on the thing or on the background.

    Args:
        pictures: a folder with its sub-folders, a pattern such as "photos/**/*.jpg", a .txt list, or paths.
        names: what the model chooses from, as `Localizer.classify` takes them; or embeddings `{name: [D]}`, such as the
            rows of a trained head.
        out: a folder for the results; None: nothing is written.
        truth: true boxes, in any format of boxes that `cliploc check` reads; None: the found ones.
        swap: whether backgrounds of pixels are swapped, too.
        seed: of the choice of other backgrounds.
        reporter: gets the pictures to do and done, and each failed picture.
        **options: options of the `Localizer`: model, method, device …

    Returns:
        What was found.

    Raises:
        UsageError: pictures, names, boxes, a model or an option that cannot be used.
        DiskFullError: no room on the disk.
    """
    target = None if out is None else user_path(out)
    found = find_pictures(pictures, target)
    labelled = () if truth is None else with_pictures(read_labels(user_path(truth)), found).pictures
    true = {one.id: [(one.boxes[i].name, tuple(one.xyxy[n])) for n, i in enumerate(one.readable)] for one in labelled}
    auditor = measure.Auditor(Options.of(**options), names)
    if len(auditor.given) < 2:
        raise UsageError(f"expected two names or more to choose from, got {auditor.names[0]!r} alone: add others")
    given = {str(one): crc32(getattr(one, "embedding", b"")) for one in auditor.given}
    settings = {"names": given, "swap": swap, "seed": seed, **auditor.localizer.describe()}
    with RUN.opened(target, [one.path for one in found.pictures], settings) as store:
        audited = _Audit(auditor, {one.id: one for one in found.pictures}, true, reporter, store, swap, seed).run()
        if target is not None:
            for name, row, rows in ((CSV, Picture, audited.pictures), (NAMES, Name, audited.names)):
                write_text(target / name, csv_text([one.name for one in fields(row)], map(asdict, rows), "\r\n"))
            write_json(target / JSON, audited.document())
            worst = [row for row in audited.pictures[:ON_PAGE] if row.risk is not None]
            shown = [(row, json.loads(store.rows(DRAWN, row.picture)[0][0])) for row in worst]
            about = {"lines": audited.lines(), "table": audited.table(), "pairs": audited.pairs, "swap": swap}
            write_text(target / PAGE, TEMPLATES.render("audit.html", title="Thing or background", shown=shown, **about))
    return audited


@dataclass
class _Audit:
    """The work of one call."""

    auditor: measure.Auditor
    files: Mapping[str, PictureFile]
    true: measure.TrueBoxes
    reporter: Reporter
    store: Store
    swap: bool
    seed: int
    failed: dict[str, str] = field(default_factory=dict)

    def run(self) -> Audited:
        """Sees each picture that is not seen yet once; some first, which lend their backgrounds to all."""

        def fail(name: str, error: CliplocError) -> None:
            self.failed[name] = str(error).removeprefix(f"{name}: ")
            self.reporter.failed(name, error)
            self.reporter.images(1)

        def see(names: Sequence[str]) -> Iterator[measure.Seen]:
            return self.auditor.see({name: self.files[name].path for name in names}, self.true, Reporter(failed=fail))

        pool = np.random.default_rng(self.seed).permutation(sorted(self.files)).tolist()[:POOL]
        lending = crc32(repr([(name, stamp(self.files[name])) for name in pool]).encode())
        facts = {name: repr([stamp(one), self.true.get(name), lending]) for name, one in self.files.items()}
        seen_with = dict(self.store.rows("SELECT id, facts FROM picture"))
        todo = [name for name, of_picture in facts.items() if seen_with.get(name) != of_picture]
        self.reporter.start(len(todo), len(self.files))
        if todo:
            lent = [*see(pool)]
            if len(lent) < 2:
                raise UsageError("expected two pictures or more that can be read, as they swap backgrounds: add others")
            for seen in chain(lent, see([name for name in todo if name not in pool])):
                if (name := str(seen.item.id)) in todo:
                    row, drawn, vectors = self._judged(seen, [one for one in lent if one is not seen])
                    content = msgspec.json.encode(row), msgspec.json.encode(drawn), arrays.save(vectors)
                    self.store.write(SAVE, name, facts[name], *content)
                    self.reporter.images(1)
        rows, kept = list[Picture](), list[tuple[int, Any, Any, float, float]]()
        every = "SELECT id, facts, row, vectors FROM picture ORDER BY id"  # however often the run was resumed
        for name, of_picture, content, vectors in self.store.each(every):
            if facts.get(name) == of_picture:
                row = msgspec.json.decode(content, type=Picture)
                rows.append(row)
                if row.lean is not None and row.risk is not None:
                    first, of_names = self.auditor.names.index(row.prediction), arrays.load(vectors)
                    kept.append((first, of_names["around"], of_names["alone"], row.lean, row.risk))
        rows.sort(key=lambda row: (row.risk is None, -(row.risk or 0.0), row.picture))
        by_name = self._by_name(*map(np.array, zip(*kept, strict=True))) if kept else ([], [])
        return Audited(rows, *by_name, self.auditor.calibrated and not self.true, self.failed)

    def _judged(
        self, seen: measure.Seen, lenders: Sequence[measure.Seen]
    ) -> tuple[Picture, list[dict[str, Any]], dict[str, Any]]:
        """A prediction, its drawings, and `[D]` of what is around the thing and of the background alone, if known."""
        auditor, names, name = self.auditor, self.auditor.names, str(seen.item.id)
        edges = [*seen.xyxy[:, :2].min(axis=0).round(2).tolist(), *seen.xyxy[:, 2:].max(axis=0).round(2).tolist()]
        row = Picture(name, names[seen.first], names[seen.second], round(seen.margin, 4), seen.box, *edges)
        if seen.box == "none":
            return row, [], {}
        order = [lenders[i] for i in np.random.default_rng([self.seed, *name.encode()]).permutation(len(lenders))]
        order.sort(key=lambda one: one.first == seen.first)  # those of another name first
        donors = [order[i % len(order)] for i in range(measure.DONORS + measure.SWAPS)]
        swapped = auditor.swapped(seen, donors[: measure.DONORS])
        known = auditor.facts(seen, swapped)
        risk, baseline = float(auditor.risk(known)[0]), float(auditor.baseline(known[:, :2])[0])
        lean = auditor.lean(seen, donors[: measure.DONORS], swapped)
        facts: dict[str, Any] = {"outside": seen.outside(), "lean": lean, "risk": risk, "baseline": baseline}
        drawn = [embedded(_drawn(seen), name, quality=75)]
        if self.swap:
            pixels = auditor.pixels(seen, donors[measure.DONORS :])
            best = [names[p] for p in (auditor.embed(pixels) @ auditor.texts.T).argmax(dim=1).tolist()]
            facts |= dict(zip(("swapped_1", "swapped_2", "alone"), best, strict=True))
            small = [ImageOps.contain(Image.fromarray(one.permute(1, 2, 0).numpy()), (SIDE, SIDE)) for one in pixels]
            drawn += [embedded(one, f"predicted: {name}", quality=75) for one, name in zip(small, best, strict=True)]
        facts = {key: round(value, 4) if isinstance(value, float) else value for key, value in facts.items()}
        vectors = {"around": auditor.surroundings(seen), "alone": swapped[-1]}
        return replace(row, **facts), drawn, {key: one.half().cpu().numpy() for key, one in vectors.items()}

    def _by_name(self, first: Any, around: Any, alone: Any, lean: Any, risk: Any) -> tuple[list[Name], list[Pair]]:
        """The names that are predicted, and pairs of them, from columns of the pictures."""
        localizer, texts = self.auditor.localizer, self.auditor.texts.cpu().numpy()
        every = [*STUFF, *(entry[0] for entry in prompts.packaged_entries("coco.txt"))]
        unknown = localizer.unknown_names(every)
        everyday = [name for name in every if name not in unknown]
        rows = localizer.embed_names(everyday).cpu().numpy()  # [K, D]
        names = leaning(self.auditor.names, first, lean, risk, around @ rows.T, everyday, texts @ rows.T)
        return names, told_apart(self.auditor.names, first, alone @ texts.T)


def _drawn(seen: measure.Seen) -> Image.Image:
    """The picture with the evidence, and the thing's box."""
    picture, frame = seen.item.picture.image, seen.item.frames[0]
    small = ImageOps.contain(picture, (SIDE, SIDE))
    over_input = F.interpolate(seen.evidence[None, None], frame.input_hw, mode="bilinear")[0]
    heat = frame.map_to_picture(over_input, (small.height, small.width))[0]
    paint_map(small, (heat / heat.max().clamp(min=1e-9) * 255).byte().cpu().numpy())
    for box in seen.xyxy * (small.width / picture.width):
        captions.draw_box(small, captions.to_rectangle(box, small.size), BOX_COLOUR, captions.line_width(small.size))
    return small
