"""A labelling run in one SQLite file: pictures, their boxes by whom, what teaching reads. docs/run.md shows the tables.

A picture's boxes have generations: 0 are the model's candidates, 1 and more those of names that are taught, and −1 a
person's. Numbers of taught boxes follow the model's, so that a number says which draft a person's box was made from.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from cliploc.errors import InputError, UnknownNameError, UsageError
from cliploc.runs.store import FILE, Entry, Store
from cliploc.values import Floats

KIND, VERSION = "annotate", 3
CACHED = 64  # pictures whose candidates are in memory
PERSON = -1  # the generation of a person's boxes
TABLES = (
    """CREATE TABLE picture (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,              -- its path below the root
    checksum TEXT NOT NULL,                 -- of the file's content
    stamp TEXT NOT NULL,                    -- of the file's size and times
    width INTEGER, height INTEGER,          -- of the upright picture
    error TEXT,                             -- why it has no results
    notes TEXT NOT NULL,                    -- JSON list
    presence TEXT,                          -- JSON object: name as it was looked for, its chance; null: unknown
    generation INTEGER NOT NULL DEFAULT 0,  -- of its taught boxes; 0: none
    status TEXT NOT NULL DEFAULT 'none',    -- none, reviewed, later or skipped, as a person set it
    corrected INTEGER NOT NULL DEFAULT 0,   -- 1: a person's boxes hold, also where there are none
    revision INTEGER NOT NULL DEFAULT 0)    -- a person's saves""",
    "CREATE INDEX picture_status ON picture (status, corrected)",
    """CREATE TABLE box (
    picture INTEGER NOT NULL REFERENCES picture ON DELETE CASCADE,
    generation INTEGER NOT NULL,            -- 0: the model's candidates, 1 and more: taught, -1: a person's
    number INTEGER NOT NULL,
    label TEXT NOT NULL,
    "left" REAL NOT NULL, top REAL NOT NULL, "right" REAL NOT NULL, bottom REAL NOT NULL,
    score REAL NOT NULL,                    -- the chance that it is right; 1 of a person's
    fit REAL,                               -- the score of its map
    draft INTEGER,                          -- of a person's box: the number of the draft that it was made from
    mask TEXT,                              -- COCO's compressed counts
    PRIMARY KEY (picture, generation, number)) WITHOUT ROWID""",
    """CREATE TABLE taught (
    picture INTEGER NOT NULL REFERENCES picture ON DELETE CASCADE,
    generation INTEGER NOT NULL,
    presence TEXT NOT NULL,                 -- JSON object: label that is taught, its chance
    PRIMARY KEY (picture, generation)) WITHOUT ROWID""",
    "CREATE TABLE learnt (generation INTEGER PRIMARY KEY, content BLOB NOT NULL)",  # learnt.safetensors
    "CREATE TABLE features (picture INTEGER PRIMARY KEY REFERENCES picture ON DELETE CASCADE, content BLOB NOT NULL)",
)
UNTOUCHED = "status = 'none' AND NOT corrected"  # what a person did with a picture refers to its drafts: they stay
COLUMNS = 'label, "left", top, "right", bottom, score, fit, mask'
OF_EACH = ("xyxy", "labels", "scores", "fits")  # the arrays of `Candidates` with a row for each box
# What teaching reads of a picture, from before and of now, and the run's entries → both together.
Joined: TypeAlias = Callable[[bytes, bytes, Sequence[str]], bytes]
Ints: TypeAlias = npt.NDArray[np.int64]


class Candidate(Struct, array_like=True):
    """A box that may become a draft."""

    label: int
    xyxy: tuple[float, float, float, float]
    score: float
    fit: float
    mask: str | None = None


class PictureResult(Struct, array_like=True):
    """What a worker found in a picture; or why it failed."""

    picture: str
    checksum: str
    error: str | None = None
    width: int | None = None
    height: int | None = None
    notes: list[str] = []
    presence: dict[int, float | None] = {}  # label that was looked for → chance that it is there
    boxes: list[Candidate] = []
    features: bytes = b""


class TaughtPicture(Struct, array_like=True):
    """A picture's boxes of the names that are taught."""

    picture: str
    presence: dict[int, float]  # label → chance that it is there
    boxes: list[Candidate]


class Taught(Struct, frozen=True):
    """What became of one name that was to be taught."""

    reviewed: int  # pictures that were reviewed
    pictures: int  # pictures that taught
    used: bool  # whether the taught drafts are used
    why: str  # in words
    # Corrections that reviewed pictures need with the drafts before and with those that they teach, each picture left
    # out in turn; None without reviewed pictures.
    before: int | None
    after: int | None
    compared: int  # number of these pictures
    agreement: float | None  # of what two halves of its pictures teach; None of a name that is not common
    exemplar: bool = False  # whether it was looked for by one picture's boxes: its boxes are unsure


class Generation(Struct, frozen=True):
    """What the taught boxes of a generation were made of."""

    number: int = 0
    of: str = ""  # a digest of all that they depend on
    names: dict[str, Taught] = {}
    reviewed: int = 0  # number of pictures that were reviewed
    undone: bool = False  # whether a person went back to it
    changed: list[str] = []  # pictures whose drafts it changed

    def lines(self) -> list[str]:
        """What is to be said of it."""
        return [f"{name}: {taught.why}" for name, taught in self.names.items() if taught.used or taught.compared]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as it was annotated."""

    id: int
    name: str
    checksum: str
    error: str | None
    size_wh: tuple[int, int]
    presence: Floats  # [P]; NaN of labels that the model does not know


@dataclass(frozen=True)
class Correction:
    """The corrected boxes of one picture."""

    boxes: list[list[float]]  # x0, y0, x1, y1 of each in pixels of the upright picture, inside it
    labels: list[int]  # of each, from 0
    # of each, COCO's compressed counts, or None if the set has no mask of it; None for a run without masks
    masks: list[str | None] | None = None
    # of each, the number of the draft that it was made from, or None for a new box; None if that is unknown
    drafts: list[int | None] | None = None

    def boxes_of(self, label: int) -> list[list[float]]:
        """The boxes of a label."""
        return [box for box, number in zip(self.boxes, self.labels, strict=True) if number == label]


@dataclass(frozen=True)
class Saved:
    """What a person did with a picture."""

    status: str = "none"
    revision: int = 0
    correction: Correction | None = None  # None: its drafts hold
    generation: int = 0  # of the drafts that it refers to

    @property
    def touched(self) -> bool:
        """Whether it refers to the drafts: they stay as they are."""
        return self.status != "none" or self.correction is not None


@dataclass(frozen=True, eq=False)
class Candidates:
    """The boxes of a picture that may become drafts, known by their numbers."""

    size_wh: tuple[int, int]
    presence: Floats  # [P]; NaN of labels that the model does not know
    xyxy: Floats  # [n, 4]
    labels: Ints  # [n]
    scores: Floats  # [n]
    fits: Floats  # [n]
    masks: tuple[str, ...] | None  # None of a run without masks
    taught: Mapping[int, float] = field(default_factory=dict)  # label that is taught → its chance
    untaught: int = 0  # number of the model's own boxes; those of taught labels follow

    @classmethod
    def of(cls, size_wh: tuple[int, int], presence: Floats, boxes: Sequence[Candidate], masks: bool) -> Self:
        """Of these boxes."""
        xyxy = np.array([box.xyxy for box in boxes], np.float64).reshape(-1, 4)
        scores, fits = (np.array([getattr(box, name) for box in boxes], np.float64) for name in ("score", "fit"))
        labels, codes = np.array([box.label for box in boxes], np.int64), tuple(box.mask or "" for box in boxes)
        return cls(size_wh, presence, xyxy, labels, scores, fits, codes if masks else None, untaught=len(boxes))

    def with_taught(self, taught: TaughtPicture) -> Self:
        """With the boxes of taught labels behind the others."""
        more = Candidates.of(self.size_wh, self.presence, taught.boxes, self.masks is not None)
        columns: dict[str, Any] = {name: np.concatenate([getattr(self, name), getattr(more, name)]) for name in OF_EACH}
        masks = None if self.masks is None or more.masks is None else (*self.masks, *more.masks)
        return replace(self, **columns, masks=masks, taught=taught.presence)

    def take(self, numbers: Sequence[int]) -> Self:
        """These boxes alone, in this order."""
        ids = np.array(numbers, np.int64)
        columns: dict[str, Any] = {name: getattr(self, name)[ids] for name in OF_EACH}
        return replace(self, **columns, masks=None if self.masks is None else tuple(self.masks[i] for i in numbers))


class StaleReviewError(ValueError):
    """The picture was saved elsewhere since this person saw it."""


class LabellingRun:
    """The store of a labelling run. Threads may share it, and any number of processes may have it open."""

    root = Entry(str, "")  # the folder of its pictures
    command = Entry(str, "")  # that made it, as it was typed last; "" where Python did
    drafts: Entry[dict[str, Any]] = Entry(dict[str, Any], {})  # `cliploc.label.drafts.DraftRule`
    # `cliploc.formats.ExportSettings` of the last call
    written: Entry[dict[str, Any]] = Entry(dict[str, Any], {})
    visible = Entry(str, "")  # a digest of the pictures that exports show
    exports: Entry[dict[str, int]] = Entry(dict[str, int], {})  # export → the count of changes when it was written
    files: Entry[list[str]] = Entry(list[str], [])  # that it writes besides its store
    left_out: Entry[list[str]] = Entry(list[str], [])  # pictures of earlier calls that the last one left out
    unreadable: Entry[dict[str, str]] = Entry(dict[str, str], {})  # picture → why it could not be read by the last call
    # A number that grows with every write that changes what exports hold.
    changes = Entry(int, 0)
    generation = Entry(int, 0)  # the last one that was taught
    # Name → the picture whose boxes of it show what a person wants more of, until enough pictures are reviewed.
    exemplars: Entry[dict[str, str]] = Entry(dict[str, str], {})
    # What the taught boxes of now were made of, last, and those before, where a person can go back to them.
    taught_by: Entry[list[Generation]] = Entry(list[Generation], [])

    def __init__(self, store: Store) -> None:
        self.store, self.out = store, store.path.parent
        self._open()

    def _open(self) -> None:
        self.settings: Mapping[str, Any] = self.store.get("settings")
        self.names: tuple[str, ...] = tuple(self.store.get("names"))
        self.entries: tuple[str, ...] = tuple(self.settings.get("labels", ()))  # what is looked for, by name
        self._label = {name: label for label, name in enumerate(self.names)}
        self.candidates = lru_cache(CACHED)(self._read_candidates)

    @classmethod
    def make(cls, out: Path, names: Sequence[str], settings: Mapping[str, Any], **values: Any) -> Self:
        """The run in a folder, made if there is none, with these entries of the table `run`.

        One with other settings is refused, but names may follow those that it has, and be looked for by other words.
        """
        store = Store(out / FILE, KIND, VERSION, TABLES)
        try:
            with store.transaction():
                if missing := [name for name in store.get("names", []) if name not in names]:
                    raise UsageError(
                        f"{out} holds a run with other settings: it also has {', '.join(missing)}: name all that it "
                        "has, or --remove or --rename some"
                    )
                if before := store.get("settings"):
                    looked_for = {*zip(store.get("names"), before.get("labels", []), strict=True)}
                    pairs = zip(names, settings.get("labels", []), strict=True)
                    store.write(
                        "UPDATE picture SET presence = (SELECT json_group_object(key, value) FROM json_each(presence) "
                        "WHERE key NOT IN (SELECT value FROM json_each(?))) WHERE presence IS NOT NULL",
                        _json([entry for name, entry in pairs if (name, entry) not in looked_for]),
                    )
                    store["settings"] = {**before, "labels": settings.get("labels", [])}
                store.keep("settings", settings)
                store["names"] = list(names)
                run = cls(store)
                run.change(**values)
        except BaseException:
            store.close()
            raise
        return run

    @classmethod
    def open(cls, out: Path) -> Self:
        """The run in a folder; one that cannot be written is opened to be read."""
        store = Store(out / FILE, KIND, VERSION)
        if store.get("settings") is None:  # killed as it was made
            store.close()
            raise UsageError(f"expected a run in {out}, which was only begun: run its `cliploc annotate` again")
        return cls(store)

    @contextmanager
    def snapshot(self) -> Iterator[Self]:
        """The run as it is now, however others go on writing."""
        with self.store.snapshot() as store:
            yield type(self)(store)

    def close(self) -> None:
        """Closes the file."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------- changes
    def change(self, **values: Any) -> None:
        """Sets entries of the table `run` that exports depend on."""
        with self.store.transaction():
            before = [self.store.get(key) for key in values]
            for key, value in values.items():
                self.store[key] = value
            self.changes += [self.store.get(key) for key in values] != before  # as JSON has them

    # ------------------------------------------------------------------------------------------------------- pictures
    def add(
        self, found: Sequence[PictureResult], stamps: Mapping[str, str], joined: Joined = lambda _, now, __: now
    ) -> None:
        """Adds pictures, all of these or none; they take the place of earlier ones with their names.

        If a picture's file is the same, what was found of other names stays, and so does what a person did with it.
        """
        with self.store.transaction():
            for one in found:
                earlier = self.store.row("SELECT id, checksum FROM picture WHERE name = ? AND width > 0", one.picture)
                if earlier and one.error is not None:
                    self.store.write("UPDATE picture SET error = ? WHERE id = ?", one.error, earlier[0])
                    continue
                same = earlier[0] if earlier and earlier[1] == one.checksum else None
                one = one if same is None else self._with_others(one, same, joined)
                self.store.write("UPDATE picture SET name = '' WHERE name = ?", one.picture)
                number = self.store.write(
                    "INSERT INTO picture (name, checksum, stamp, width, height, error, notes, presence) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    one.picture, one.checksum, stamps[one.picture], one.width, one.height, one.error,
                    _json(one.notes),
                    None if one.error else _json({self.entries[p]: chance for p, chance in one.presence.items()}),
                )  # fmt: skip
                self._insert(number, 0, enumerate(one.boxes))
                if one.features:
                    self.store.insert("features", [(number, one.features)])
                if same is not None:
                    self._take_over(same, number, len(one.boxes))
                self.remove([""])
            self.changes += 1

    def _with_others(self, one: PictureResult, earlier: int, joined: Joined) -> PictureResult:
        """What was found in a picture, with what an earlier row has of names that were not looked for now."""
        [(text,)] = self.store.rows("SELECT presence FROM picture WHERE id = ?", earlier)
        chances = _read(text, dict[str, float | None])
        every = {p: chances[entry] for p, entry in enumerate(self.entries) if entry in chances} | one.presence
        boxes = [box for box in self._boxes(earlier, 0) if box.label not in one.presence]
        boxes = sorted([*boxes, *one.boxes], key=lambda box: (-box.score, box.label))  # as a worker sorts them
        features = one.features and joined(self.features([earlier])[earlier], one.features, self.entries)
        return msgspec.structs.replace(one, presence=dict(sorted(every.items())), boxes=boxes, features=features)

    def _take_over(self, earlier: int, now: int, count: int) -> None:
        """Gives what was taught, and what a person did, to the row that replaces another, which has `count` boxes.

        A person's boxes get the numbers of the same drafts.
        """
        for (generation,) in self.store.rows("SELECT generation FROM taught WHERE picture = ?", earlier):
            self._insert(now, generation, enumerate(self._boxes(earlier, generation), count))
        self.store.write("UPDATE taught SET picture = ?2 WHERE picture = ?1", earlier, now)
        same = " AND ".join(f'n."{column}" = o."{column}"' for column in ("label", "left", "top", "right", "bottom"))
        self.store.write(
            "UPDATE box SET picture = ?2, draft = (SELECT n.number FROM box o JOIN picture p ON p.id = o.picture "
            f"JOIN box n ON n.picture = ?2 AND n.generation = o.generation AND {same} "
            "WHERE o.picture = ?1 AND o.number = box.draft AND o.generation IN (0, p.generation)) "
            f"WHERE picture = ?1 AND generation = {PERSON}", earlier, now,
        )  # fmt: skip
        self.store.write(
            "UPDATE picture SET (status, corrected, revision, generation) = "
            "(SELECT status, corrected, revision, generation FROM picture WHERE id = ?1) WHERE id = ?2", earlier, now,
        )  # fmt: skip

    def features(self, pictures: Sequence[int]) -> dict[int, bytes]:
        """Id of a picture → what teaching reads of it, for some that have it."""
        marks = ", ".join("?" * len(pictures))
        return dict(self.store.rows(f"SELECT picture, content FROM features WHERE picture IN ({marks})", *pictures))

    def remove(self, names: Iterable[str]) -> None:
        """Removes pictures with all that belongs to them."""
        with self.store.transaction():
            for name in names:
                self.store.write("DELETE FROM picture WHERE name = ?", name)
            self.changes += 1

    def stamped(self) -> dict[str, tuple[str, str, bool]]:
        """Picture → its stamp, its checksum and whether it has results."""
        rows = self.store.rows("SELECT name, stamp, checksum, error IS NULL FROM picture")
        return {name: (stamp, checksum, bool(done)) for name, stamp, checksum, done in rows}

    def missing(self) -> dict[str, tuple[int, ...]]:
        """Picture → the labels of the run that were not looked for in it, where there are some."""
        rows = self.store.rows(
            "SELECT name, json_group_array(e.key) FROM picture, json_each(?) e WHERE error IS NULL "
            "AND e.value NOT IN (SELECT key FROM json_each(presence)) GROUP BY name", _json(self.entries),
        )  # fmt: skip
        return {name: tuple(sorted(_read(labels, list[int]))) for name, labels in rows}

    def restamp(self, stamps: Mapping[str, str]) -> None:
        """Notes stamps of files whose content is as it was."""
        with self.store.transaction():
            for name, stamp in stamps.items():
                self.store.write("UPDATE picture SET stamp = ? WHERE name = ?", stamp, name)

    def pictures(self) -> dict[str, Picture]:
        """All pictures by name."""
        rows = self.store.rows("SELECT id, name, checksum, error, width, height, presence FROM picture ORDER BY id")
        found = {}
        for number, name, checksum, error, *size_wh, presence in rows:
            known = {} if presence is None else _read(presence, dict[str, float | None])
            chances = np.array([known.get(entry, 0.0) for entry in self.entries], np.float64)  # 0: not looked for yet
            found[name] = Picture(number, name, checksum, error, (size_wh[0] or 0, size_wh[1] or 0), chances)
        return found

    # ---------------------------------------------------------------------------------------------------------- names
    def rename(self, name: str, to: str) -> None:
        """Calls a name otherwise; where the run has the other, the two become one. All boxes stay."""
        place = self._place(name)
        with self.store.transaction():
            self._forget_taught(lambda key: to if key == name else key)
            self.store.write("UPDATE box SET label = ? WHERE label = ?", to, name)
            if to in self.names:
                one, other = self.entries[place], self.entries[self.names.index(to)]
                for number, text in self.store.rows("SELECT id, presence FROM picture WHERE presence IS NOT NULL"):
                    chances = _read(text, dict[str, float | None])
                    chances[other] = max((chances.get(one), chances.get(other)), key=lambda chance: chance or 0.0)
                    self.store.write("UPDATE picture SET presence = ? WHERE id = ?", _json(chances), number)
                self._take_out(place)
            else:
                self.change(names=[to if known == name else known for known in self.names])
        self._open()

    def add_name(self, name: str, threshold: float) -> None:
        """Adds a name that people may use at once; it is looked for when the run is computed with it."""
        with self.store.transaction():
            settings, new = (
                {**self.settings, "labels": [*self.entries, name]},
                {"thresholds": threshold, "shares": None},
            )
            drafts = {**self.drafts, **{key: [*self.drafts.get(key, ()), new[key]] for key in new}}
            self.change(names=[*self.names, name], settings=settings, drafts=drafts)
        self._open()

    def remove_name(self, name: str) -> int:
        """Removes a name with its boxes, also those that people drew → their number."""
        place = self._place(name)
        with self.store.transaction():
            self._forget_taught(lambda key: None if key == name else key)
            [(drawn,)] = self.store.rows(f"SELECT count(*) FROM box WHERE label = ? AND generation = {PERSON}", name)
            self.store.write("DELETE FROM box WHERE label = ?", name)
            self._number_again()
            self._take_out(place)
        self._open()
        return int(drawn)

    def _place(self, name: str) -> int:
        if name not in self._label:
            raise UnknownNameError("name of the run", name, self.names)
        if len(self.names) == 1:
            raise UsageError(f"{name} is the only name of {self.out}: make a new run")
        return self._label[name]

    def _take_out(self, place: int) -> None:
        """Takes a name out of what stands by name."""

        def without(values: Sequence[Any]) -> list[Any]:
            return [*values[:place], *values[place + 1 :]]

        drafts = {**self.drafts, **{key: without(self.drafts.get(key, ())) for key in ("thresholds", "shares")}}
        settings = {**self.settings, "labels": without(self.entries)}
        self.change(names=without(self.names), settings=settings, drafts=drafts)

    def _number_again(self) -> None:
        """Numbers drafts without gaps, as others refer to them by their places."""
        self.store.write(
            "CREATE TEMP TABLE moved AS SELECT picture, generation, number, row_number() OVER "
            "(PARTITION BY picture, generation ORDER BY number) - 1 + (generation > 0) * (SELECT count(*) FROM box b "
            "WHERE b.picture = box.picture AND b.generation = 0) AS place FROM box WHERE generation >= 0"
        )
        self.store.write(
            "UPDATE box SET draft = (SELECT place FROM moved m JOIN picture p ON p.id = m.picture WHERE m.picture = "
            f"box.picture AND m.number = draft AND m.generation IN (0, p.generation)) WHERE generation = {PERSON}"
        )
        same = "m.picture = box.picture AND m.generation = box.generation AND m.number = box.number"
        self.store.write(f"UPDATE box SET number = -1 - (SELECT place FROM moved m WHERE {same}) WHERE generation >= 0")
        self.store.write("UPDATE box SET number = -1 - number WHERE generation >= 0")
        self.store.write("DROP TABLE moved")

    def _forget_taught(self, name: Callable[[str], str | None]) -> None:
        """Goes back to what the model found; drafts that people have seen stay, with other names, None: none."""
        self.store.write(f"UPDATE picture SET generation = 0 WHERE {UNTOUCHED}")
        self._drop()
        for picture, generation, text in self.store.rows("SELECT picture, generation, presence FROM taught"):
            chances = {new: chance for key, chance in _read(text, dict[str, float]).items() if (new := name(key))}
            same = "picture = ? AND generation = ?"
            self.store.write(f"UPDATE taught SET presence = ? WHERE {same}", _json(chances), picture, generation)
        self.store.write("DELETE FROM learnt")
        self.taught_by = []
        self.exemplars = {new: picture for key, picture in self.exemplars.items() if (new := name(key))}

    # ---------------------------------------------------------------------------------------------------------- boxes
    def _read_candidates(self, picture: Picture) -> Candidates:
        """The model's boxes of a picture."""
        boxes = self._boxes(picture.id, 0)
        if not boxes and not self.store.row("SELECT 1 FROM picture WHERE id = ?", picture.id):
            raise _gone(picture)
        return Candidates.of(picture.size_wh, picture.presence, boxes, self.masks)

    @property
    def masks(self) -> bool:
        """Whether its boxes have masks."""
        return bool(self.settings.get("masks", False))

    def taught(self, picture: Picture, generation: int) -> TaughtPicture | None:
        """Its boxes of taught names in a generation; None where it has none."""
        row = self.store.row("SELECT presence FROM taught WHERE picture = ? AND generation = ?", picture.id, generation)
        if row is None:
            return None
        presence = {self._label[name]: chance for name, chance in _read(row[0], dict[str, float]).items()}
        return TaughtPicture(picture.name, presence, self._boxes(picture.id, generation))

    def _boxes(self, picture: int, generation: int) -> list[Candidate]:
        query = f"SELECT {COLUMNS} FROM box WHERE picture = ? AND generation = ? ORDER BY number"
        return [
            Candidate(self._label[label], (left, top, right, bottom), score, fit, mask)
            for label, left, top, right, bottom, score, fit, mask in self.store.rows(query, picture, generation)
        ]

    def _insert(self, picture: int, generation: int, boxes: Iterable[tuple[int, Candidate]]) -> None:
        of_lot = picture, generation
        rows = [(number, self.names[one.label], *one.xyxy, one.score, one.fit, None, one.mask) for number, one in boxes]
        self.store.insert("box", [(*of_lot, *row) for row in rows])

    # --------------------------------------------------------------------------------------------- what a person saves
    def saved(self, picture: Picture) -> Saved:
        """What a person did with a picture so far."""
        found = self.store.row("SELECT status, revision, corrected, generation FROM picture WHERE id = ?", picture.id)
        if found is None:
            raise _gone(picture)
        status, revision, corrected, generation = found
        return Saved(status, revision, self._correction(picture.id) if corrected else None, generation)

    def _correction(self, picture: int) -> Correction:
        rows = self.store.rows(
            'SELECT label, "left", top, "right", bottom, draft, mask FROM box WHERE picture = ? AND generation = ? '
            "ORDER BY number", picture, PERSON,
        )  # fmt: skip
        masks = [mask for *_, mask in rows] if self.masks else None
        boxes = [list(sides) for _, *sides, _, _ in rows]
        return Correction(boxes, [self._label[row[0]] for row in rows], masks, [row[5] for row in rows])

    def states(self) -> dict[str, tuple[str, int, int]]:
        """Picture → status, revision and generation of its drafts."""
        rows = self.store.rows("SELECT name, status, revision, generation FROM picture WHERE error IS NULL")
        return {name: (status, revision, generation) for name, status, revision, generation in rows}

    def reviewed(self) -> frozenset[str]:
        """The pictures that a person has finished."""
        return frozenset(name for (name,) in self.store.rows("SELECT name FROM picture WHERE status = 'reviewed'"))

    def save(
        self,
        picture: Picture,
        status: str,
        correction: Correction | None,  # None: the drafts hold
        seen: Saved | None = None,  # what the person saw; None: this is saved whatever was
    ) -> int | None:
        """Saves what a person did with a picture → its new revision; None if its drafts are others by now."""
        count = 0 if correction is None else len(correction.boxes)
        if correction is not None and correction.drafts is None:
            correction = replace(correction, drafts=[None] * count)
        with self.store.transaction():
            before = self.saved(picture)
            if seen is None and (before.status, before.correction) == (status, correction):  # of a call that was killed
                return before.revision
            if seen is not None:
                check_revision(before.revision, seen.revision)
                if before.generation != seen.generation:
                    return None
            self.store.write(
                "UPDATE picture SET status = ?, corrected = ?, revision = revision + 1 WHERE id = ?",
                status, correction is not None, picture.id,
            )  # fmt: skip
            self.store.write("DELETE FROM box WHERE picture = ? AND generation = ?", picture.id, PERSON)
            if correction is not None:
                masks, drafts = correction.masks or [None] * count, correction.drafts or [None] * count
                boxes = zip(correction.labels, correction.boxes, drafts, masks, strict=True)
                drawn = [(self.names[label], *box, 1.0, None, draft, mask) for label, box, draft, mask in boxes]
                self.store.insert("box", [(picture.id, PERSON, number, *row) for number, row in enumerate(drawn)])
            self.changes += 1
        return before.revision + 1

    # ------------------------------------------------------------------------------------------------------- teaching
    def learnt(self) -> bytes | None:
        """The content of learnt.safetensors; None where nothing is learnt."""
        [now] = self.taught_by[-1:] or [Generation()]
        row = self.store.row("SELECT content FROM learnt WHERE generation = ?", now.number)
        return None if row is None else bytes(row[0])

    def teach(self, made: Generation, pictures: Mapping[Picture, TaughtPicture], learnt: bytes | None) -> None:
        """Writes a generation of taught boxes, but not of pictures that a person has touched meanwhile.

        Where it changed the drafts of pictures, those of before are kept.
        """
        with self.store.transaction():
            before = self.taught_by[-1:] or [Generation()]
            number = self.generation + 1
            self._drop()
            self.store.write(f"UPDATE picture SET generation = 0 WHERE {UNTOUCHED}")
            untouched = {row[0] for row in self.store.rows(f"SELECT id FROM picture WHERE {UNTOUCHED}")}
            for picture, taught in pictures.items():
                if picture.id not in untouched:
                    continue
                presence = {self.names[label]: chance for label, chance in taught.presence.items()}
                self.store.insert("taught", [(picture.id, number, _json(presence))])
                first = self.store.rows("SELECT count(*) FROM box WHERE picture = ? AND generation = 0", picture.id)
                self._insert(picture.id, number, enumerate(taught.boxes, int(first[0][0])))
                self.store.write("UPDATE picture SET generation = ? WHERE id = ?", number, picture.id)
            self.store.write("DELETE FROM learnt WHERE generation != ?", before[0].number)
            if learnt is not None:
                self.store.insert("learnt", [(number, learnt)])
            made = msgspec.structs.replace(made, number=number)
            self.generation = number
            self.taught_by = [*(before if made.changed else []), made]
            self.changes += 1

    def undo(self, finished: int) -> None:
        """Goes back to the generation before, but for pictures that a person has touched since."""
        with self.store.transaction():
            *earlier_ones, now = self.taught_by
            if not earlier_ones:  # another editor went back meanwhile
                return
            earlier = "(SELECT max(t.generation) FROM taught t WHERE t.picture = picture.id AND t.generation < ?)"
            self.store.write(f"UPDATE picture SET generation = coalesce({earlier}, 0) WHERE {UNTOUCHED}", now.number)
            self._drop()
            back = msgspec.structs.replace(earlier_ones[0], of=now.of, reviewed=finished, undone=True, changed=[])
            self.taught_by = [back]
            self.changes += 1

    def _drop(self) -> None:
        """Drops the taught boxes that no picture has any more."""
        gone = "SELECT t.picture, t.generation FROM taught t JOIN picture p ON p.id = t.picture"
        gone += " WHERE t.generation != p.generation"
        self.store.write(f"DELETE FROM box WHERE (picture, generation) IN ({gone})")
        self.store.write(f"DELETE FROM taught WHERE (picture, generation) IN ({gone})")


@dataclass(frozen=True)
class Earlier:
    """What an earlier call settled for those that follow."""

    least: float | None = None  # minimum presence
    files: Sequence[str] = ()  # that the run writes besides its store
    image_url: str | None = None
    names: Sequence[str] = ()

    def renamed(self, rename: Mapping[str, str], remove: Sequence[str]) -> list[str]:
        """Its names, some called otherwise and some removed; a command that is given again changes nothing more."""
        for old, new in rename.items():
            if not {old, new} & {*self.names}:
                raise UnknownNameError("name of the run", old, self.names)
        return list(dict.fromkeys(rename.get(name, name) for name in self.names if name not in remove))


def settled_in(out: Path) -> Earlier:
    """What an earlier call settled for those that follow, if there was one."""
    if not (out / FILE).is_file():
        return Earlier()
    with Store(out / FILE, KIND, VERSION) as store:
        settings = store.get("settings", {})
        url = store.get("written", {}).get("image_url")
        return Earlier(settings.get("min_presence"), store.get("files", []), url, store.get("names", []))


def check_revision(revision: int, seen: int) -> None:
    """Refuses what was made from an earlier revision of a picture."""
    if revision != seen:
        raise StaleReviewError(f"expected revision {revision} of this picture, got {seen}: load it again")


def _gone(picture: Picture) -> InputError:
    return InputError(f"{picture.name} was annotated again meanwhile: open the folder again")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _read(text: str, kind: Any) -> Any:
    return msgspec.json.decode(text, type=kind)
