"""`cliploc datasets`: the registry, listed; or a folder, checked."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text

from cliploc.cli.options import DrawnFlags, SampleFlags, WithJson, command, flag
from cliploc.cli.output import DONE, SOME_FAILED
from cliploc.cli.terminal import MOST_PROBLEMS, Terminal, facts, title_row
from cliploc.errors import UsageError
from cliploc.evaluate import data

MOST_CLASSES = 20  # listed one by one; more are only counted


class DatasetsFlags(SampleFlags, WithJson):
    """What `datasets` has."""

    name: str = flag("Show all about this dataset.", "", metavar="NAME", positional=True)
    root: Path | None = flag("Check this folder, and list its problems.", None, metavar="DIR")


@command()
def datasets(flags: DatasetsFlags) -> int:
    """List, describe or check datasets.

    Nothing is downloaded.

    Example: cliploc datasets wsol --root ilsvrc_val_dev --subset ten-classes
    """
    terminal, name, root = Terminal(), flags.name, flags.root
    if root is None:
        if flags.changed().keys() - {"--name", "--seed", "--debug"}:
            raise UsageError(
                f"expected --root, the folder to check, got none: cliploc datasets {name or 'NAME'} --root DIR"
            )
        return _describe(terminal, name) if name else _list(terminal)
    if not name:
        raise UsageError(f"expected the name of the dataset in {root}, got none: cliploc datasets NAME --root {root}")
    labelled = name in data.labelled_readers.names()
    if labelled and (flags.subset is not None or flags.classes is not None):
        raise UsageError(f"each label map of {name} has all classes: leave --subset and --classes out")
    dataset: data.Dataset | data.LabelledDataset
    with terminal.progress(f"reading {name}"):
        if labelled:
            dataset = data.open_labelled(name, root, flags.split, **DrawnFlags.chosen(flags))
            pictures, of_samples = len(dataset), {"classes": len(dataset.classes)}
            rows = [("classes", f"{len(dataset.classes):,}, one for every pixel")]
        else:
            dataset = boxed = data.open_dataset(name, root, flags.split, **flags.chosen())
            classes = len({sample.label for sample in boxed.samples})
            boxes, masks = (
                sum(map(len, of)) for of in zip(*((s.boxes_xyxy, s.masks) for s in boxed.samples), strict=True)
            )
            pictures = len({sample.path for sample in boxed.samples})
            of_samples = {"samples": len(boxed), "classes": classes, "boxes": boxes, "masks": masks}
            truths = " and ".join(f"{count:,} {of}" for of, count in (("boxes", boxes), ("masks", masks)) if count)
            rows = [
                ("samples", f"{len(boxed):,}: a class in a picture each, {truths} in all"),
                ("classes", f"{classes:,} of {len(boxed.classes):,}"),
                *_classes(boxed, data.subsets.get(flags.subset).reasons if flags.subset else {}),
            ]
    kinds = Counter(problem.kind for problem in dataset.problems)
    document = {
        "schema_version": 1,
        "dataset": name,
        "root": str(dataset.root),
        "split": dataset.split,
        "role": dataset.role,
        "pictures": pictures,
        **of_samples,
        "problems": dict(kinds.most_common()),
        "named": [asdict(problem) for problem in dataset.problems],
    }
    use = "a threshold may be chosen on it" if dataset.role == "tune" else "a threshold chosen on it is an oracle"
    rows = [
        ("dataset", name),
        ("folder", str(dataset.root)),
        ("split", f"{dataset.split}: {use}"),
        ("pictures", f"{pictures:,}"),
        *rows,
        ("problems", f"{len(dataset.problems):,}" if dataset.problems else "none"),
    ]
    for kind, count in kinds.most_common():
        rows.append(("", f"{count:,} {kind}{', left out by design' if kind in data.BY_DESIGN else ''}"))
        examples = [problem for problem in dataset.problems if problem.kind == kind][:MOST_PROBLEMS]
        rows += [("", f"· {problem.source}: {problem.reason}") for problem in examples]
        if count > len(examples):
            rows.append(("", f"· … and {count - len(examples):,} more: --json names all"))
    terminal.print_result(document, facts(rows), as_json=flags.as_json)
    split = () if flags.split is None else ("--split", flags.split)
    task = "segmentation" if labelled else "boxes"
    following = ("cliploc", "benchmark", task, "--dataset", name, "--root", root, *split, "--out", "results")
    terminal.say_next(following, quiet=flags.as_json)
    return SOME_FAILED if kinds.keys() - data.BY_DESIGN else DONE


def _classes(dataset: data.Dataset, reasons: dict[str, str]) -> Iterable[tuple[str, str]]:
    """The samples of each class if there are few, those of a subset in its order and with its reasons."""
    counts = Counter(sample.label for sample in dataset.samples)
    places = {wnid: place for place, wnid in enumerate(reasons)}
    if len(counts) <= MOST_CLASSES:
        for label in sorted(counts, key=lambda label: (places.get(dataset.classes[label].wnid, 0), label)):
            class_name = dataset.classes[label]
            reason = f" – {reasons[class_name.wnid]}" if class_name.wnid in reasons else ""
            yield "", f"{class_name.name}: {counts[label]}{reason}"


def _describe(terminal: Terminal, name: str) -> int:
    readers: Any = data.labelled_readers if name in data.labelled_readers.names() else data.readers
    reader = readers.get(name)
    rows = [("name", reader.name), ("what it is", f"{reader.title}: {reader.about}"), ("get it at", reader.source)]
    rows += [("" if i else "splits", f"{s.name}, to {s.role} on: {s.about}") for i, s in enumerate(reader.splits)]
    terminal.data(facts(rows))
    terminal.data(Text("\nfiles below the root", "bold"))
    terminal.data(reader.layout)
    terminal.data(Text(f"\nto check a folder: cliploc datasets {reader.name} --root DIR", "dim"))
    return DONE


def _list(terminal: Terminal) -> int:
    _table(terminal, data.readers)
    terminal.data("")
    terminal.data(facts(("subsets", f"{subset.name}: {subset.title}") for subset in data.subsets))
    terminal.data(Text("\nwith a class for every pixel, for benchmark segmentation", "bold"))
    _table(terminal, data.labelled_readers)
    line = "\ncliploc datasets NAME lists the files that a dataset needs; with --root DIR, it checks a folder"
    terminal.data(Text(line, "dim"))
    return DONE


def _table(terminal: Terminal, readers: Iterable[data.Reader | data.LabelledReader]) -> None:
    rows: list[Any] = [title_row("name", "splits: what for", "what it is", "where to get it")]
    narrow: list[Any] = [title_row("name", "splits", "about")]
    for reader in readers:
        splits, what = ", ".join(f"{s.name}: {s.role}" for s in reader.splits), f"{reader.title}: {reader.about}"
        rows.append((reader.name, splits, what, reader.source))
        narrow.append((reader.name, splits, f"{what}. Get it: {reader.source}"))
    terminal.listing(rows, narrow)
