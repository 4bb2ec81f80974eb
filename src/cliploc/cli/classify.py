"""`cliploc classify`: which names whole pictures fit best."""

from collections.abc import Sequence
from dataclasses import replace

from cliploc.cli.options import PhotoFlags, asked_names, command, flag, refuse_exemplars, use_threads
from cliploc.cli.photos import PhotoRun, model_settings
from cliploc.cli.terminal import printable, styled
from cliploc.options import Options

OF_CLASSIFIER = ("model", "pretrained", "templates", "resize", "device", "precision", "batch_size", "text_cache")


class ClassifyFlags(PhotoFlags):
    """What `classify` has besides options of `Localizer`."""

    top_k: int = flag("Number of names per picture, best first.", 5, within=(1, 1_000_000), group="output")


@command(only=OF_CLASSIFIER)
def classify(asked: ClassifyFlags, options: Options) -> int:
    """Rank names by how well they fit a whole picture.

    Without names, ImageNet's 1,000 classes are ranked. Pictures are fitted as the model's own preprocessing does it:
    CLIP takes the middle.

    Example: cliploc classify street.jpg -p bicycle -p car --top-k 1
    """
    from cliploc.find import prompts

    given = asked_names(asked.prompt, asked.classes)
    names = given or asked_names(None, "imagenet")
    refuse_exemplars(names, "classify")
    labels = prompts.parse(names, prompts.resolve_templates(options.templates), contrasts=False).names
    run = PhotoRun(asked.photos, quiet=asked.as_json)
    with run.started(f"loading {options.model}") as reporter:
        from rich.cells import cell_len, set_cell_size

        from cliploc.document import classified_record
        from cliploc.localizer import classifier

        use_threads(asked.threads)
        localizer = classifier(**options.changed())
        told = replace(reporter, failed=run.fail)
        results = localizer.classify_stream(run.paths, names, asked.top_k, on_error="skip", reporter=told)
        for reason in localizer.unknown_names(names).values():
            run.terminal.say(f"left out: {reason}", style="yellow")
        for reading in localizer.readings(given) if given else ():  # nobody typed ImageNet's names
            run.terminal.say(reading, style="yellow")
        run.count(reporter, "classify")
        columns = (("picture", *run.paths), ("name", *labels))  # those whose width differs
        widths = [max(cell_len(printable(text)) for text in column) for column in columns]

        def line(cells: Sequence[str], style: str = "") -> None:
            photo, rank, name, probability, cosine = map(printable, cells)
            photo, name = (set_cell_size(text, width) for text, width in zip((photo, name), widths, strict=True))
            run.terminal.data(styled(f"{photo}  {rank:>4}  {name}  {probability:>11}  {cosine:>7}", style))

        if not run.quiet:
            line(("picture", "rank", "name", "probability", "cosine"), "bold")
        for result in results:
            picture = result.picture
            run.records.append(classified_record(picture.source, picture.image.size, picture.notes, result.names))
            for rank, (name, probability, cosine) in enumerate([] if run.quiet else result.names, start=1):
                line((picture.source, f"{rank}", name, f"{probability:.4f}", f"{cosine:.4f}"))
            reporter.images(1)
    settings = model_settings(localizer, options, OF_CLASSIFIER) | {"resize": localizer.resize}
    run.keep({"names": names, "top_k": asked.top_k, **settings})
    return run.end()
