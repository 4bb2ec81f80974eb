"""`cliploc explain`: whether the maps of one picture show what the model uses."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliploc.cli.options import (
    AS_PUBLISHED,
    MethodFlags,
    WithJson,
    WithThreads,
    asked_names,
    command,
    flag,
    method_names,
    options_of_methods,
    rare,
    refuse_exemplars,
    refuse_unknown,
    use_threads,
)
from cliploc.cli.output import DONE, json_text, print_document, say_next, title_row, writable, write
from cliploc.cli.terminal import Terminal, printable
from cliploc.errors import UsageError
from cliploc.evaluate.tasks.faithfulness.command import BASELINES, METRICS
from cliploc.options import FaithfulnessOptions, Options
from cliploc.support.files import Inputs, locked

if TYPE_CHECKING:
    from PIL import Image

    from cliploc.evaluate.tasks.faithfulness.measure import Faithfulness
    from cliploc.evaluate.tasks.faithfulness.page import HotMap
    from cliploc.support.reporter import Reporter

PAGE, RESULTS = "explain.html", "explain.json"
SCHEMA_VERSION = 1  # of explain.json
STEPS = 28  # of one picture: with 14 or more, means of deletion and insertion are within 0.003 of those with all 224
EXAMPLE = "cliploc explain cat.jpg -p cat --method cam,layer_cam"
# explain has its own form of these, or does not use them
OWN = ("method", "method_options", "recipe", "head", "min_presence", "resize")
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


@command(leave_out=(*OWN, *OF_BOXES, "target"), defaults={"steps": STEPS}, without=AS_PUBLISHED)
def explain(asked: ExplainFlags, options: Options, faithfulness: FaithfulnessOptions) -> int:
    """Measure whether the maps of one picture are faithful.

    The page shows the maps, curves of deletion and insertion, and the score of the hot region alone, beside
    those of two baselines. Scores are probabilities over all names of --prompt and --among; for a single name,
    its cosine. --steps 224 is what papers report; it takes eight times as long as 28. CLIP models also tell which words
    of a name the match used.

    Example: cliploc explain street.jpg -p bicycle -p car --method cam,layer_cam
    """
    refuse_unknown([], method_names(asked.method))
    from cliploc.find import prompts
    from cliploc.find.recipes import recipe_of
    from cliploc.images.reading import load
    from cliploc.methods import find

    photo, prompt, among = asked.photo, asked.prompt, asked.among
    if not prompt:
        raise UsageError(f"expected at least one name to explain, got none: {EXAMPLE}")
    given = method_names(asked.method) or [recipe_of(options.model).method]
    of_methods = options_of_methods(given, asked.option)
    of_methods |= {name: {} for name in BASELINES if name not in given and not asked.no_baselines}
    titles = {name: find(name, options.ensemble).title for name in of_methods}
    more = list(dict.fromkeys(asked_names(None, among) if among else []))
    refuse_exemplars([*prompt, *more], "explain")
    # refused before a model is loaded
    explained = prompts.parse(prompt, prompts.resolve_templates(options.templates), contrasts=False).names
    labels = prompts.parse(more, contrasts=False).names if more else ()
    names = [*prompt, *(entry for entry, label in zip(more, labels, strict=True) if label not in explained)]
    folder = writable(asked.out)
    Inputs([photo, *([among] if among else [])]).check_outputs([folder / PAGE, folder / RESULTS], [])
    picture = load(photo).image
    terminal = Terminal()
    start = time.perf_counter()
    with locked(folder), terminal.progress(f"loading {options.model}") as reporter:
        from cliploc.evaluate.tasks.faithfulness.page import explanation_page

        use_threads(asked.threads)
        measurer = _measurer(options, names, of_methods, faithfulness)
        for reading in measurer.localizer.readings(prompt):
            terminal.say(reading, style="yellow")
        reporter.phase("explain")
        reporter.start(len(prompt) * len(titles), len(prompt) * len(titles))
        maps: dict[tuple[str, str], HotMap] = {}
        documents = []
        for name in prompt:
            documents.append(_explained(measurer, name, photo, picture, maps, reporter))
        document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "photo": photo,
            "model": measurer.backbone.name,
            "score": "probability" if len(measurer.known) > 1 else "cosine",
            "among": len(measurer.known),
            "protocol": asdict(faithfulness),
            "methods": {spec: measurer.localizer.options_of(spec, of_methods[spec]) for spec in titles},
            "names": documents,
        }
        about = {
            "model": document["model"],
            "names": f"{document['among']:,}",
            "score": document["score"],
            "steps": f"{faithfulness.steps or 224}",
            "baseline": faithfulness.baseline or "zero; blur for insertion",
        }
        title = f"What the model uses: {Path(photo).name}"
        page = explanation_page(title, picture, document, maps, titles, SHOWN, about)
        write(folder / PAGE, page.encode())
        write(folder / RESULTS, json_text(document).encode())
    if asked.as_json:
        print_document(document)
    else:
        rows = [
            (document["name"], spec, *(f"{numbers[key]:.3f}" for key in SHOWN))
            for document in documents
            for spec, numbers in document["methods"].items()
        ]
        short = [title.replace(" region", "").replace("region ", "") for title in SHOWN.values()]
        wide, narrow = ([title_row("name", "method", *titles), *rows] for titles in (SHOWN.values(), short))
        terminal.listing(wide, narrow)
        for result in documents:
            if result["words"] is not None:
                said = "  ".join(f"{word['word']} {word['share']:.2f}" for word in result["words"] if word["share"])
                terminal.data(printable(f"words used for {result['name']}: {said or 'none raises the score'}"))
    terminal.say(f"{len(prompt)} × {len(titles)} maps explained, {time.perf_counter() - start:.1f} s", style="dim")
    say_next(terminal, ("open", folder / PAGE), quiet=asked.as_json)
    return DONE


SHOWN = {
    "deletion": "deletion ↓",
    "insertion": "insertion ↑",
    "share": "region share",
    "only_region": "only region",
    "without_region": "without region",
}  # key of an explanation's number → its heading


def _measurer(
    options: Options, names: list[str], methods: dict[str, dict[str, Any]], protocol: FaithfulnessOptions
) -> Faithfulness:
    from cliploc.evaluate.tasks.faithfulness.measure import Faithfulness
    from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
    from cliploc.localizer import Localizer

    first, given = next(iter(methods.items()))
    chosen = options.but(method=first, method_options=given, resize="squash", min_presence=0)
    metrics = chosen_metrics(METRICS)
    return Faithfulness(Localizer(**chosen.given()), names, metrics, methods, protocol)


def _explained(
    measurer: Faithfulness,
    name: str,
    photo: str,
    picture: Image.Image,
    maps: dict[tuple[str, str], HotMap],
    reporter: Reporter,
) -> dict[str, Any]:
    """What the maps of a name show, for the document; adds the maps themselves to `maps`."""
    by_cosine = len(measurer.known) < 2
    end, place = ("_cosine", 1) if by_cosine else ("", 0)  # of numbers and of a region's scores
    seen = measurer.see(photo, picture, target=name)
    methods: dict[str, Any] = {}
    for spec, heat in measurer.maps(seen, reporter=reporter).items():
        measured = measurer.measure_map(seen, heat, reporter=reporter)
        threshold = measurer.localizer.box_rule_of(spec, measurer.methods[spec]).threshold
        region = measurer.region(seen, heat, threshold)
        maps[name, spec] = heat, region.level
        methods[spec] = {
            **{key: measured.values[f"{key}{end}"] for key in METRICS},
            "share": region.share,
            "only_region": region.only[place],
            "without_region": region.without[place],
            "threshold": threshold,
            "curves": {key: list(measured.curves[f"{key}{end}"]) for key in METRICS},
        }
        reporter.images(1)
    probability = None if by_cosine else seen.probability
    words = measurer.localizer.word_shares(picture, name)
    shares = None if words is None else [{"word": word, "share": share} for word, share in words]
    return {"name": name, "probability": probability, "cosine": seen.cosine, "words": shares, "methods": methods}
