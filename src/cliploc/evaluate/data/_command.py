"""`cliploc datasets`: the registry, listed; or a folder, checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliploc.cli.options import DrawnFlags, SampleFlags, WithJson, command, flag
from cliploc.cli.output import DONE, SHOWN_PROBLEMS, SOME_FAILED, facts, print_result, say_next, title_row
from cliploc.cli.terminal import Terminal, styled
from cliploc.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from cliploc.evaluate.data import LabelledDataset, LabelledReader, Reader
    from cliploc.values import Dataset

SHOWN_CLASSES = 20  # listed one by one; more are only counted


class DatasetsFlags(SampleFlags, WithJson):
    """What `datasets` has."""

    name: str = flag("Show all about this dataset.", "", metavar="NAME", positional=True)
    root: Path | None = flag("Check this folder, and list its problems.", None, metavar="DIR")


@command()
def datasets(asked: DatasetsFlags) -> int:
    """List, describe or check datasets.

    Nothing is downloaded.

    Example: cliploc datasets wsol --root ilsvrc_val_dev --subset ten-classes
    """
    from cliploc.evaluate.data import BY_DESIGN, labelled_readers, open_dataset, open_labelled, subsets

    terminal, name, root = Terminal(), asked.name, asked.root
    if root is None:
        if asked.changed().keys() - {"--name", "--seed", "--debug"}:
            raise UsageError(
                f"expected --root, the folder to check, got none: cliploc datasets {name or 'NAME'} --root DIR"
            )
        return _described(terminal, name)
    if not name:
        raise UsageError(f"expected the name of the dataset in {root}, got none: cliploc datasets NAME --root {root}")
    split = () if asked.split is None else ("--split", asked.split)
    if name in labelled_readers.names():
        if asked.subset is not None or asked.classes is not None:
            raise UsageError(f"each label map of {name} has all classes: leave --subset and --classes out")
        with terminal.progress(f"reading {name}"):
            pictures = open_labelled(name, root, asked.split, **DrawnFlags.chosen(asked))
        counts = {"pictures": len(pictures), "classes": len(pictures.classes)}
        print_result(terminal, _document(pictures, counts), _about_labelled(pictures), as_json=asked.as_json)
        _say_benchmark(terminal, "segmentation", name, root, *split, quiet=asked.as_json)
        return SOME_FAILED if pictures.problems else DONE
    with terminal.progress(f"reading {name}"):
        dataset = open_dataset(name, root, asked.split, **asked.chosen())
    counts = {
        "pictures": len({sample.path for sample in dataset.samples}),
        "samples": len(dataset),
        "classes": len({sample.label for sample in dataset.samples}),
        "boxes": sum(len(sample.boxes_xyxy) for sample in dataset.samples),
        "masks": sum(len(sample.masks) for sample in dataset.samples),
    }
    document = _document(dataset, counts)
    about = _about_dataset(dataset, document, subsets.get(asked.subset).reasons if asked.subset else {})
    print_result(terminal, document, about, as_json=asked.as_json)
    _say_benchmark(terminal, "boxes", name, root, *split, quiet=asked.as_json)
    return SOME_FAILED if any(problem.kind not in BY_DESIGN for problem in dataset.problems) else DONE


def _say_benchmark(terminal: Terminal, task: str, name: str, root: Path, *more: str, quiet: bool = False) -> None:
    words = ("cliploc", "benchmark", task, "--dataset", name, "--root", root, *more, "--out", "results")
    say_next(terminal, words, quiet=quiet)


def _described(terminal: Terminal, name: str) -> int:
    """All about one dataset, or the list of them."""
    from cliploc.evaluate.data import labelled_readers, readers, subsets

    if name:
        reader: Reader | LabelledReader = (labelled_readers if name in labelled_readers.names() else readers).get(name)
        rows = [("name", reader.name), ("what it is", f"{reader.title}: {reader.about}"), ("get it at", reader.source)]
        rows += [("" if i else "splits", f"{s.name}, to {s.role} on: {s.about}") for i, s in enumerate(reader.splits)]
        terminal.data(facts(rows))
        terminal.data(styled("\nfiles below the root", "bold"))
        terminal.data(reader.layout)
        terminal.data(styled(f"\nto check a folder: cliploc datasets {reader.name} --root DIR", "dim"))
        return DONE
    _listing(terminal, list(readers))
    terminal.data("")
    terminal.data(facts(("subsets", f"{subset.name}: {subset.title}") for subset in subsets))
    terminal.data(styled("\nwith a class for every pixel, for benchmark segmentation", "bold"))
    _listing(terminal, list(labelled_readers))
    line = "\ncliploc datasets NAME lists the files that a dataset needs; with --root DIR, it checks a folder"
    terminal.data(styled(line, "dim"))
    return DONE


def _listing(terminal: Terminal, chosen: Sequence[Reader | LabelledReader]) -> None:
    rows: list[Sequence[str | Text]] = [title_row("name", "splits: what for", "what it is", "where to get it")]
    narrow: list[Sequence[str | Text]] = [title_row("name", "splits", "about")]
    for reader in chosen:
        splits = ", ".join(s.name if s.name == s.role else f"{s.name}: {s.role}" for s in reader.splits)
        rows.append((reader.name, splits, f"{reader.title}: {reader.about}", reader.source))
        narrow.append((reader.name, splits, f"{reader.title}: {reader.about}. Get it: {reader.source}"))
    terminal.listing(rows, narrow)


def _about_labelled(dataset: LabelledDataset) -> RenderableType:
    rows = [
        ("dataset", f"{dataset.name}, with a class for every pixel"),
        ("folder", str(dataset.root)),
        ("split", dataset.split),
        ("pictures", f"{len(dataset):,}"),
        ("classes", f"{len(dataset.classes):,}"),
        ("problems", f"{len(dataset.problems):,}" if dataset.problems else "none"),
    ]
    rows += [
        ("", f"· {problem.kind}: {problem.source}: {problem.reason}") for problem in dataset.problems[:SHOWN_PROBLEMS]
    ]
    return facts(rows)


def _about_dataset(dataset: Dataset, counted: Mapping[str, Any], reasons: Mapping[str, str]) -> RenderableType:
    from cliploc.evaluate.data import BY_DESIGN

    use = "a threshold may be chosen on it" if dataset.role == "tune" else "a threshold chosen on it is an oracle"
    truths = " and ".join(f"{counted[key]:,} {key}" for key in ("boxes", "masks") if counted[key])
    rows = [
        ("dataset", dataset.name),
        ("folder", str(dataset.root)),
        ("split", f"{dataset.split}: {use}"),
        ("pictures", f"{counted['pictures']:,}"),
        ("samples", f"{counted['samples']:,}: a class in a picture each, {truths} in all"),
        ("classes", f"{counted['classes']:,} of {len(dataset.classes):,}"),
    ]
    counts = Counter(sample.label for sample in dataset.samples)
    if len(counts) <= SHOWN_CLASSES:
        places = {wnid: place for place, wnid in enumerate(reasons)}
        for label in sorted(counts, key=lambda label: (places.get(dataset.classes[label].wnid, 0), label)):
            class_name = dataset.classes[label]
            reason = f" – {reasons[class_name.wnid]}" if class_name.wnid in reasons else ""
            rows.append(("", f"{class_name.name}: {counts[label]}{reason}"))
    rows.append(("problems", f"{len(dataset.problems):,}" if dataset.problems else "none"))
    for kind, count in counted["problems"].items():
        rows.append(("", f"{count:,} {kind}{', left out by design' if kind in BY_DESIGN else ''}"))
        examples = [problem for problem in dataset.problems if problem.kind == kind][:SHOWN_PROBLEMS]
        rows += [("", f"· {problem.source}: {problem.reason}") for problem in examples]
        if count > len(examples):
            rows.append(("", f"· … and {count - len(examples):,} more: --json names all"))
    return facts(rows)


def _document(dataset: Dataset | LabelledDataset, counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "dataset": dataset.name,
        "root": str(dataset.root),
        "split": dataset.split,
        "role": dataset.role,
        **counts,
        "problems": dict(Counter(problem.kind for problem in dataset.problems).most_common()),
        "named": [asdict(problem) for problem in dataset.problems],
    }
