"""`cliploc audit`: does the model look at the thing, or at what stands around it?"""

from pathlib import Path

from cliploc.cli import options as cli
from cliploc.cli.options import WithJson, WithThreads, command, flag, use_threads
from cliploc.cli.output import DONE, SOME_FAILED, print_document, writable
from cliploc.cli.terminal import Terminal, titled
from cliploc.options import Options


class AuditFlags(WithThreads, WithJson):
    """What `audit` has besides options of `Localizer`."""

    pictures: Path = flag("Folder, pattern or .txt list of pictures.", metavar="PICTURES", positional=True)
    names: Path = flag("Names to choose from, one per line, or safetensors of embeddings.", metavar="FILE|imagenet")
    truth: Path | None = flag("True boxes, as `check` reads them.", None, metavar="LABELS", none="the found boxes")
    swap: bool = flag("Swap the backgrounds of pixels, too.", False)
    out: Path = flag("Folder for the results.", metavar="DIR", group="output")


@command(only=("model", "pretrained", "method", "method_options", "recipe", "device", "precision", "text_cache"))
def audit(flags: AuditFlags, options: Options) -> int:
    """Tell what depends on the background of pictures.

    Ranks predictions by the chance that another background loses them, and tells which names lean on theirs.

    Example: cliploc audit photos --names names.txt --out audited
    """
    terminal = Terminal()
    names = cli.read_names(flags.names)
    cli.check_words([name for name in names if type(name) is str], "audit")
    out = writable(flags.out)
    with terminal.progress(f"loading {options.model}") as every, terminal.first_failures(every) as reporter:
        from cliploc.evaluate.auditing import job

        use_threads(flags.threads)
        asked = {"reporter": reporter, **options.changed()}
        audited = job.audit(flags.pictures, names, out, truth=flags.truth, swap=flags.swap, **asked)
    if flags.as_json:
        print_document(audited.document())
    elif audited.table()[1:]:
        terminal.listing(titled(audited.table()))
    for line in audited.lines():
        terminal.say(line, style="dim")
    terminal.say_next(f"open {out / job.PAGE}", quiet=flags.as_json)
    return SOME_FAILED if audited.failed else DONE
