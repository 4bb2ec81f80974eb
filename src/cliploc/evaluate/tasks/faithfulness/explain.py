"""`cliploc explain`: whether the maps of one picture show what the model uses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cliploc.cli.options import (
    AS_PUBLISHED,
    MethodFlags,
    WithJson,
    WithThreads,
    check_known,
    check_words,
    command,
    flag,
    method_names,
    options_of_methods,
    rare,
    read_names,
    use_threads,
)
from cliploc.cli.output import DONE, json_text, print_document, printable, writable, write
from cliploc.cli.terminal import Terminal, title_row
from cliploc.errors import UsageError
from cliploc.evaluate.tasks.faithfulness.command import BASELINES
from cliploc.options import FaithfulnessOptions, Options
from cliploc.support.files import Inputs, locked

PAGE, RESULTS = "explain.html", "explain.json"
SCHEMA_VERSION = 1  # of explain.json
STEPS = 28  # of one picture: with 14 or more, means of deletion and insertion are within 0.003 of those with all 224
EXAMPLE = "cliploc explain cat.jpg -p cat --method cam,layer_cam"
# explain has its own form of these, or does not use them
NOT_TAKEN = ("method", "method_options", "recipe", "head", "min_presence", "resize")
OF_BOXES = (
    "components", "min_area", "max_boxes", "nms_iou", "split_peaks", "min_score", "text_cache", "learnt", "masks_by",
)  # fmt: skip


class ExplainFlags(MethodFlags, WithThreads, WithJson):
    """What `explain` has besides options of `Localizer` and of protocols."""

    photo: str = flag("One picture file.", metavar="PICTURE", positional=True)
    method: list[str] | None = flag(
        "Methods; `cliploc methods` lists them; repeatable.", None, metavar="NAME,NAME", group="method",
        none="that of the model's recipe",
    )  # fmt: skip
    prompt: list[str] | None = flag(
        'What to explain; repeatable. "cat|kitten": synonyms.', None, metavar="NAME", flags=("--prompt", "-p")
    )
    among: str | None = flag(
        "More names for the softmax: a file with one per line, or ImageNet's.", None, metavar="FILE|imagenet"
    )
    no_baselines: bool = rare("Leave out the two baselines, centre_gaussian and random.", False, group="method")
    out: Path = flag("Folder for explain.html and explain.json.", Path("explain-out"), metavar="DIR", group="output")


@command(leave_out=(*NOT_TAKEN, *OF_BOXES, "target"), defaults={"steps": STEPS}, without=AS_PUBLISHED)
def explain(flags: ExplainFlags, options: Options, faithfulness: FaithfulnessOptions) -> int:
    """Measure whether the maps of one picture are faithful.

    The page shows the maps, curves of deletion and insertion, and the score of the hot region alone, beside
    those of two baselines. Scores are probabilities over all names of --prompt and --among; for a single name,
    its cosine. --steps 224 is what papers report; it takes eight times as long as 28. CLIP models also tell which words
    of a name the match used.

    Example: cliploc explain street.jpg -p bicycle -p car --method cam,layer_cam
    """
    check_known([], method_names(flags.method))
    from cliploc.find import prompts
    from cliploc.find.recipes import recipe_of
    from cliploc.images.reading import load
    from cliploc.methods import find

    photo, prompt, among = flags.photo, flags.prompt, flags.among
    if not prompt:
        raise UsageError(f"expected at least one name to explain, got none: {EXAMPLE}")
    specs = method_names(flags.method) or [recipe_of(options.model).method]
    of_methods = options_of_methods(specs, flags.option)
    of_methods |= {name: {} for name in BASELINES if name not in specs and not flags.no_baselines}
    titles = {name: find(name, options.ensemble).title for name in of_methods}
    more = list(dict.fromkeys(read_names(among)[0] if among else []))
    check_words([*prompt, *more], "explain")
    # refused before a model is loaded
    explained = prompts.parse(prompt, prompts.resolve_templates(options.templates), contrasts=False).names
    labels = prompts.parse(more, contrasts=False).names if more else ()
    names = [*prompt, *(entry for entry, label in zip(more, labels, strict=True) if label not in explained)]
    folder = writable(flags.out)
    Inputs([photo, *([among] if among else [])]).check_outputs([folder / PAGE, folder / RESULTS], [])
    picture, terminal = load(photo).image, Terminal()
    start = time.perf_counter()
    with locked(folder), terminal.progress(f"loading {options.model}") as reporter:
        from cliploc.evaluate.tasks.faithfulness import explanation

        use_threads(flags.threads)
        measurer = explanation.measurer_of(options, names, of_methods, faithfulness)
        for reading in measurer.localizer.readings(prompt):
            terminal.say(reading, style="yellow")
        reporter.phase("explain")
        reporter.start(len(prompt) * len(titles), len(prompt) * len(titles))
        results = list(explanation.explained(measurer, prompt, photo, picture, reporter))
        document = explanation.document_of(measurer, photo, results, SCHEMA_VERSION)
        title = f"What the model uses: {Path(photo).name}"
        page = explanation.page_of(title, picture, results, titles, document, faithfulness)
        write(folder / PAGE, page.encode())
        write(folder / RESULTS, json_text(document).encode())
    if flags.as_json:
        print_document(document)
    else:
        headings = explanation.HEADINGS
        rows: list[Any] = [
            (result.name, one.method, *(f"{one.numbers[key]:.3f}" for key in headings))
            for result in results
            for one in result.maps
        ]
        short = [heading.replace(" region", "").replace("region ", "") for heading in headings.values()]
        wide, narrow = ([title_row("name", "method", *titles), *rows] for titles in (headings.values(), short))
        terminal.listing(wide, narrow)
        for result in results:
            if result.words is not None:
                text = "  ".join(f"{word} {share:.2f}" for word, share in result.words if share)
                terminal.data(printable(f"words used for {result.name}: {text or 'none raises the score'}"))
    terminal.say(f"{len(prompt)} × {len(titles)} maps explained, {time.perf_counter() - start:.1f} s", style="dim")
    terminal.say_next(("open", folder / PAGE), quiet=flags.as_json)
    return DONE
