"""Leaderboards as one HTML page; and what a leaderboard's file says, checked by its signature. No model is loaded."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cliploc._documents import DocumentError, Leaderboard, checked, read_json
from cliploc._files import write_whole
from cliploc.errors import UsageError
from cliploc.report.html import REPORT_TEMPLATES
from cliploc.report.tables import Cell, Table, decimal, percent

FILE, VERSION = "leaderboard.json", 1
NUMBERS = {  # key → title and meaning; in percent
    "gt_known": ("GT-known", "the largest contour's box has IoU ≥ 0.5 with a true box, at the fixed τ"),
    "v2": ("V2", "mean of such accuracies at IoU 0.3, 0.5 and 0.7 with the best contour's box, each at its fixed τ"),
    "v2_oracle": ("V2, oracle", "MaxBoxAccV2 as published: each τ is the best of the pictures reported on"),
    "top_box": ("Acc@0.5", "the box with the best score has IoU ≥ 0.5 with a true box"),
    "pointing": ("pointing", "the hottest pixel is in a true box, or at most 15 pixels of 224 beside it"),
    "pxap": ("PxAP", "average precision of pixels, of a set with masks"),
    "ap_given": ("AP given", "COCO's box AP; each picture is asked for the names that it holds"),
    "ar_given": ("AR given", "COCO's box AR with 100 boxes, asked as before"),
    "ap": ("AP", "COCO's box AP; each picture is asked for all names of the set"),
    "ap50": ("AP50", "the same at IoU 0.5"),
    "ar": ("AR", "COCO's box AR with 100 boxes; each picture is asked for all names"),
    "f1_random": ("F1 random", "presence: F1 of found names, asked with as many absent ones, drawn (POPE)"),
    "f1_popular": ("F1 popular", "the same with the most frequent absent names"),
    "f1_confusable": ("F1 confusable", "the same with those that most often come with the names that are there"),
    "false_finds": ("absent found", "share of all absent names that are found; less is better"),
}
ABOUT = (
    "Percent. τ is chosen on the split given, for GT-known and for each IoU of V2, and then fixed. Small: the "
    "95 % interval, of 1,000 bootstrap draws of pictures (of 200 for AP and AR, centred on the number)."
)


def signature_of(document: Mapping[str, Any]) -> str:
    """SHA-256 of everything else in the file, as JSON with sorted keys."""
    signed = {key: value for key, value in document.items() if key != "signature"}
    text = json.dumps(signed, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_leaderboard(folder: Path) -> dict[str, Any]:
    """Reads a leaderboard's file; one that was changed is an error."""
    path = folder / FILE
    try:
        read = read_json(path, dict[str, Any])
        if read.get("kind") == "leaderboard" and read.get("schema_version") != VERSION:
            raise UsageError(
                f"{path} is of cliploc {read.get('cliploc_version')}, in format {read.get('schema_version')}, expected "
                f"{VERSION}: use that version"
            )
        document: dict[str, Any] = checked(read, Leaderboard)
    except FileNotFoundError:
        raise UsageError(
            f"expected the folder of a leaderboard, found no {FILE} in {folder}: give the --out of a run that has ended"
        ) from None
    except DocumentError as error:
        raise UsageError(f"{path} is not a leaderboard ({error}): run it again") from None
    if signature_of(document) != document["signature"]:
        raise UsageError(f"{path} was changed after it was signed: do not trust it; run the leaderboard again")
    return document


def tables_of(documents: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A table for each set and split: a row for each model and method, the best GT-known first."""
    sets: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for document in documents:
        for dataset in document["sets"]:
            sets.setdefault(f"{dataset['name']} {dataset['split']}", []).append((document, dataset))
    return [_table(title, of) for title, of in sets.items()]


def _table(title: str, of: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Table:
    rows = [(document, dataset, row) for document, dataset in of for row in dataset["rows"]]
    keys = [key for key in NUMBERS if any(key in row["numbers"] for _, _, row in rows)]
    rows.sort(key=lambda row: tuple(-row[2]["numbers"].get(key, -1.0) for key in keys[:1]))  # equal ones as they came
    columns = {
        "model": "",
        "method": "",
        **{NUMBERS[key][0]: NUMBERS[key][1] for key in keys},
        "τ": "of GT-known and of the boxes",
        "τ chosen on": "",
        "samples": "a name in a picture each; those that failed are not in the numbers",
    }
    cells = [
        [
            Cell(document["model"]),
            Cell(row["method"]),
            *(percent(row["numbers"].get(key), row["confidence_95"].get(key)) for key in keys),
            Cell("own") if row.get("threshold") is None else decimal(row["threshold"], 3),
            Cell(f"{dataset['tuned_on']} ({dataset['tuned_samples']:,})"),
            Cell(f"{row['evaluated']:,}" + (f", {row['failed']:,} failed" if row["failed"] else ""), row["evaluated"]),
        ]
        for document, dataset, row in rows
    ]
    return Table(title, columns, {"": cells}, {"model", "method", "τ chosen on"}, [ABOUT])


def write_leaderboard_page(folders: Sequence[Path], out: Path) -> None:
    """Writes one page of several leaderboards; each file's signature is checked."""
    documents = [read_leaderboard(folder) for folder in folders]
    sources = [
        {
            "model": document["model"],
            "weights": document["weights"],
            "options": json.dumps(document["asked"]["options"], ensure_ascii=False),
            "cliploc": document["cliploc_version"],
            "versions": ", ".join(f"{name} {version}" for name, version in sorted(document["versions"].items())),
            "seed": f"{document['asked']['seed']}",
            "signature": document["signature"],
        }
        for document in documents
    ]
    text = REPORT_TEMPLATES.render(
        "leaderboard.html", title="Leaderboard", tables=tables_of(documents), sources=sources
    )
    write_whole(out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
