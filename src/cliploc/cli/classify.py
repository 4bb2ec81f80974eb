"""`cliploc classify`: which names whole pictures fit best."""

from dataclasses import replace

from cliploc import Options
from cliploc.cli import options as cli
from cliploc.cli.photos import PhotoRun, settings_of

OF_CLASSIFIER = ("model", "pretrained", "templates", "resize", "device", "precision", "batch_size", "text_cache")


class ClassifyFlags(cli.PhotoFlags):
    """What `classify` has besides options of `Localizer`."""

    top_k: cli.Count = cli.flag("Number of names per picture, best first.", 5, group="output")


@cli.command(only=OF_CLASSIFIER)
def classify(flags: ClassifyFlags, options: Options) -> int:
    """Rank names by how well they fit a whole picture.

    Without names, ImageNet's 1,000 classes are ranked. Pictures are fitted as the model's own preprocessing does it:
    CLIP takes the middle.

    Example: cliploc classify street.jpg -p bicycle -p car --top-k 1
    """
    from cliploc.find import prompts

    typed = flags.names()
    names = typed or cli.read_names("imagenet")
    cli.check_words(names, "classify")
    prompts.parse(names, prompts.resolve_templates(options.templates), contrasts=False)  # before a model is loaded
    run = PhotoRun(flags.photos, quiet=flags.as_json)
    with run.started(f"loading {options.model}") as reporter:
        from cliploc.document import classified_record
        from cliploc.localizer import classifier

        cli.use_threads(flags.threads)
        localizer = classifier(**options.changed())
        reporter = replace(reporter, failed=run.fail)
        results = localizer.classify_stream(run.paths, names, flags.top_k, on_error="skip", reporter=reporter)
        for reason in localizer.unknown_names(names).values():
            run.terminal.say(f"left out: {reason}", style="yellow")
        for reading in localizer.readings(typed) if typed else ():  # nobody typed ImageNet's names
            run.terminal.say(reading, style="yellow")
        run.count(reporter, "classify")
        for result in results:
            picture = result.picture
            record = classified_record(picture.source, picture.image.size, picture.notes, result.names)
            ranked = [(name, f"{chance:.4f}", f"cosine {cosine:.4f}") for name, chance, cosine in result.names]
            rows = [(f"{rank}", *cells) for rank, cells in enumerate(ranked, start=1)]
            run.done(picture.source, record, rows)
    run.keep({"names": names, "top_k": flags.top_k, **settings_of(localizer)})
    return run.end()
