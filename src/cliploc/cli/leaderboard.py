"""`cliploc leaderboard`: all methods on several sets, with τ chosen on other pictures; its check, and its page."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cliploc._files import user_path
from cliploc._imports import refuse_without
from cliploc._terminal import Terminal, printable, styled
from cliploc.cli.options import (
    AS_PUBLISHED,
    MOST_COUNTED,
    MOST_SEED,
    EngineFlags,
    WithJson,
    command,
    flag,
    method_names,
    named_folders,
    refuse_unknown,
    refuse_unknown_dataset,
)
from cliploc.cli.output import (
    DONE,
    SOME_FAILED,
    file_writable,
    print_document,
    say_failures,
    say_next,
    titled,
    writable,
)
from cliploc.config import Options, parse_list
from cliploc.errors import UsageError
from cliploc.reporter import SILENT

ACTIONS = ("run", "check", "page")
CHECKED = 20  # samples of each run that check computes again
SHOWN = ("gt_known", "v2", "top_box", "pointing", "pxap", "ap_given", "ap", "f1_confusable")  # on the terminal
UNLESS_AP = ("top_box", "pointing")  # of these, so that a line has at most 80 characters


class LeaderboardFlags(EngineFlags, WithJson):
    """What `leaderboard` has besides options of `Localizer`."""

    action: str = flag("run, check or page.", metavar="ACTION", positional=True)
    folders: list[Path] | None = flag(
        "Of check and page: folders of leaderboards.", None, metavar="FOLDER", positional=True
    )
    sets: str | None = flag("Sets, perhaps with a split: coco,lvis:val.", None, metavar="NAME,NAME")
    root: list[str] | None = flag(
        "Folder of a set, or of one of its splits (NAME:SPLIT=DIR); repeatable.", None, metavar="NAME=DIR"
    )
    method: list[str] | None = flag(
        "Methods; repeatable.", None, metavar="NAME,NAME", none="all that fit the model", group="method"
    )
    tune: int = flag("Samples of a held-out split, on which τ is chosen.", 1000, within=(1, MOST_COUNTED))
    sample: int | None = flag(
        "Draw N samples of each set; of check: compute N of each run again.",
        None,
        within=(0, MOST_COUNTED),
        none=f"all; of check {CHECKED}",
    )
    seed: int = flag("Random seed of the draws.", 0, within=(0, MOST_SEED))
    out: Path | None = flag("Folder for the results; of page: the HTML file.", None, metavar="DIR|FILE", group="output")


@command(
    leave_out=(
        "method",
        "method_options",
        "head",
        "threshold",
        "recipe",
        "text_cache",
        "masks_by",
        "learnt",
        "ensemble",
    ),
    without=AS_PUBLISHED,
)
def leaderboard(asked: LeaderboardFlags, options: Options) -> int:
    """Compare all methods on several sets.

    The threshold τ of boxes is chosen on a held-out split and then fixed. The result is one signed folder. If the run
    is stopped, the same command resumes it.

    Example: cliploc leaderboard run --sets coco --root coco=data/coco --out board

    Example: cliploc leaderboard check board

    Example: cliploc leaderboard page board other --out leaderboard.html
    """
    refuse_without("bench", "leaderboard")
    if asked.action not in ACTIONS:
        raise UsageError(f"expected leaderboard {', '.join(ACTIONS[:2])} or {ACTIONS[2]}, got {asked.action!r}")
    if asked.action == "run":
        return _run(asked, options)
    if not asked.folders:
        raise UsageError(f"expected the folder of a leaderboard, got none: cliploc leaderboard {asked.action} FOLDER")
    return _check(asked) if asked.action == "check" else _page(asked)


def _roots(asked: LeaderboardFlags) -> dict[str, Path]:
    """Set, or set:split → its folder."""
    roots = named_folders(asked.root or [], "coco=DIR, or coco:train2017=DIR")
    for name in roots:
        refuse_unknown_dataset(name.partition(":")[0])
    return {name: user_path(path) for name, path in roots.items()}


def _run(asked: LeaderboardFlags, options: Options) -> int:
    if asked.folders or asked.out is None or not asked.sets or asked.sample == 0:
        raise UsageError(
            "expected --sets, --root and --out alone: cliploc leaderboard run --sets NAME --root NAME=DIR --out DIR"
        )
    names = parse_list(asked.sets)
    for text in names:
        refuse_unknown_dataset(text.partition(":")[0])
    if twice := [
        name for name in names if [text.partition(":")[0] for text in names].count(name.partition(":")[0]) > 1
    ]:
        raise UsageError(f"expected each set once, got {', '.join(twice)}: make a leaderboard of each split")
    methods = method_names(asked.method)
    refuse_unknown([], methods)
    roots, engine = _roots(asked), asked.parsed()
    from cliploc.jobs.leaderboard import Wish, parse_set, run_leaderboard, settings_of

    wish = Wish(
        options, methods or _fitting(options), [parse_set(text) for text in names], asked.tune, asked.sample, asked.seed
    )
    terminal, out = Terminal(), writable(asked.out)
    for line in settings_of(wish)[2]:
        terminal.say(f"left out: {line.split(': use one of')[0]}", style="yellow")
    start = time.perf_counter()
    with terminal.progress("reading the sets", speed=True) as reporter:
        # Failures are printed at the end, with those of earlier runs.
        document, failed = run_leaderboard(
            wish, roots, out, engine=engine, reporter=replace(reporter, failed=SILENT.failed)
        )
    if asked.as_json:
        print_document(document)
    else:
        for dataset in document["sets"]:
            terminal.data(
                styled(f"{dataset['name']} {dataset['split']}, percent, τ chosen on {dataset['tuned_on']}", "bold")
            )
            terminal.listing(titled(_table(dataset)))
    say_failures(terminal, failed)
    terminal.say(
        f"{time.perf_counter() - start:.1f} s; signed {document['signature'][:16]}; results in {out}", style="dim"
    )
    say_next(terminal, ("cliploc", "leaderboard", "page", asked.out, "--out", "leaderboard.html"), quiet=asked.as_json)
    return SOME_FAILED if failed else DONE


def _fitting(options: Options) -> list[str]:
    """All methods that run on the model, without baselines."""
    from cliploc.backbones import models
    from cliploc.saliency import fitting, methods

    name = str(options.model).replace("/", "-")
    if ":" in name:  # its tower is known only when it is loaded
        raise UsageError(f"expected --method with {options.model}, got none: cliploc methods lists them")
    fit = fitting(models.get(name), guided=options.guide is not None)
    return [method for method in fit if methods.get(method).family != "baseline"]


def _table(of_set: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    from cliploc.report.leaderboard_page import NUMBERS

    rows = sorted(of_set["rows"], key=lambda row: -row["numbers"].get("gt_known", 0.0))
    there = {key for row in rows for key in row["numbers"]}
    keys = [key for key in SHOWN if key in there and not (key in UNLESS_AP and "ap" in there)]
    table = [("method", *(NUMBERS[key][0] for key in keys), "τ")]
    for row in rows:
        numbers = (f"{row['numbers'][key]:.2f}" if key in row["numbers"] else "–" for key in keys)
        tau = f"{row['threshold']:.3f}" if row.get("threshold") is not None else "own"
        table.append((row["method"], *numbers, tau))
    return table


def _check(asked: LeaderboardFlags) -> int:
    from cliploc.jobs.leaderboard import check_leaderboard

    terminal, code, roots, engine = Terminal(), DONE, _roots(asked), asked.parsed()
    for folder in asked.folders or ():
        with terminal.progress(f"checking {folder}") as reporter:
            wanted = CHECKED if asked.sample is None else asked.sample
            check = check_leaderboard(folder, roots, samples=wanted, engine=engine, reporter=reporter)
        again = f"{check.same:,} rows computed again are equal"
        again += f", {check.close:,} nearly equal, {len(check.other):,} others" if check.close or check.other else ""
        terminal.data(
            printable(f"{folder}: signature and {check.files:,} files hold; {check.rows:,} rows follow; {again}")
        )
        say_failures(terminal, dict.fromkeys(check.other, "computed again it is another result"))
        code = SOME_FAILED if check.other else code
    return code


def _page(asked: LeaderboardFlags) -> int:
    from cliploc.report.leaderboard_page import write_leaderboard_page

    if asked.out is None:
        raise UsageError("expected --out, the HTML file, got none: add --out leaderboard.html")
    terminal, out = Terminal(), asked.out
    file_writable(out)
    write_leaderboard_page(asked.folders or [], out)
    terminal.data(printable(str(out)))
    return DONE
