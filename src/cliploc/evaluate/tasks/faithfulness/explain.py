"""`cliploc explain`: whether the maps of one picture show what the model uses."""

import time
from pathlib import Path
from typing import Any

from cliploc.cli import options as cli
from cliploc.cli import output
from cliploc.cli.options import flag, rare
from cliploc.cli.terminal import Terminal, title_row
from cliploc.errors import UsageError
from cliploc.evaluate.tasks.faithfulness.command import BASELINES, METRICS
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


class ExplainFlags(cli.MethodFlags, cli.WithThreads, cli.WithJson):
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


@cli.command(leave_out=(*NOT_TAKEN, *OF_BOXES, "target"), defaults={"steps": STEPS}, without=cli.AS_PUBLISHED)
def explain(flags: ExplainFlags, options: Options, faithfulness: FaithfulnessOptions) -> int:
    """Measure whether the maps of one picture are faithful.

    The page shows the maps, curves of deletion and insertion, and the score of the hot region alone, beside
    those of two baselines. Scores are probabilities over all names of --prompt and --among; for a single name,
    its cosine. --steps 224 is what papers report; it takes eight times as long as 28.

    Example: cliploc explain street.jpg -p bicycle -p car --method cam,layer_cam
    """
    cli.check_known([], cli.method_names(flags.method))
    from cliploc.find import prompts
    from cliploc.find.recipes import recipe_of
    from cliploc.images.reading import load
    from cliploc.methods import find

    photo, prompt, among = flags.photo, flags.prompt, flags.among
    if not prompt:
        raise UsageError(f"expected at least one name to explain, got none: {EXAMPLE}")
    methods = cli.options_of_methods(cli.method_names(flags.method) or [recipe_of(options.model).method], flags.option)
    methods |= {name: {} for name in BASELINES if name not in methods and not flags.no_baselines}
    titles = {name: find(name).title for name in methods}
    more = list(dict.fromkeys(cli.read_names(among) if among else []))
    cli.check_words([*prompt, *more], "explain")
    # refused before a model is loaded
    explained = prompts.parse(prompt, prompts.resolve_templates(options.templates), contrasts=False).names
    labels = prompts.parse(more, contrasts=False).names if more else ()
    names = [*prompt, *(entry for entry, label in zip(more, labels, strict=True) if label not in explained)]
    folder = output.writable(flags.out)
    Inputs([photo, *([among] if among else [])]).check_outputs([folder / PAGE, folder / RESULTS], [])
    picture, terminal = load(photo).image, Terminal()
    start = time.perf_counter()
    with locked(folder), terminal.progress(f"loading {options.model}") as reporter:
        from cliploc.evaluate.tasks.faithfulness import explanation
        from cliploc.evaluate.tasks.faithfulness.measure import Faithfulness
        from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
        from cliploc.localizer import Localizer

        cli.use_threads(flags.threads)
        method, method_options = next(iter(methods.items()))
        chosen = options.but(method=method, method_options=method_options, resize="squash", min_presence=0)
        localizer = Localizer(**chosen.changed())
        measurer = Faithfulness(localizer, names, chosen_metrics(METRICS), methods, faithfulness)
        for reading in localizer.readings(prompt):
            terminal.say(reading, style="yellow")
        reporter.phase("explain")
        reporter.start(len(prompt) * len(titles), len(prompt) * len(titles))
        results = list(explanation.explained(measurer, prompt, photo, picture, reporter))
        document = explanation.document_of(measurer, photo, results, SCHEMA_VERSION)
        title = f"What the model uses: {Path(photo).name}"
        page = explanation.page_of(title, picture, results, titles, measurer, document)
        output.write(folder / PAGE, page.encode())
        output.write(folder / RESULTS, output.json_text(document).encode())
    if flags.as_json:
        output.print_document(document)
    else:
        headings = explanation.HEADINGS
        rows: list[Any] = [
            (result.name, method, *(f"{one.numbers[key]:.3f}" for key in headings))
            for result in results
            for method, one in result.maps.items()
        ]
        short = [heading.replace(" region", "").replace("region ", "") for heading in headings.values()]
        wide, narrow = ([title_row("name", "method", *of), *rows] for of in (headings.values(), short))
        terminal.listing(wide, narrow)
    terminal.say(f"{len(prompt)} × {len(titles)} maps explained, {time.perf_counter() - start:.1f} s", style="dim")
    terminal.say_next(("open", folder / PAGE), quiet=flags.as_json)
    return output.DONE
