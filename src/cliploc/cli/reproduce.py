"""`cliploc reproduce`: published numbers beside ours, each by one `cliploc benchmark`."""

import contextlib
import io
import shlex
from pathlib import Path

from cliploc._files import alone_in, own_temporaries
from cliploc._imports import refuse_without
from cliploc._terminal import Terminal, printable, styled
from cliploc.cli.options import MOST_COUNTED, EngineFlags, WithJson, command, flag, named_folders
from cliploc.cli.output import DONE, NOTHING_DONE, SOME_FAILED, json_text, print_result, titled, writable, write

FILE = "reproduced.json"


class ReproduceFlags(EngineFlags, WithJson):
    """What `reproduce` has."""

    rows: str = flag("Ids or their beginnings, all, or a file of rows.", metavar="LIST|FILE.json", positional=True)
    root: list[str] | None = flag("Folder of a set; repeatable.", None, metavar="NAME=DIR")
    model: str | None = flag(
        "Rehearse on another model, such as mini-vit.", None, metavar="NAME", none="each row's own", group="model"
    )
    pretrained: str | None = flag(
        "Weights: a tag, or a file of the row's tower.", None, metavar="TAG|FILE", none="each row's own", group="model"
    )
    sample: int | None = flag("Rehearse on N pictures drawn at random.", None, within=(1, MOST_COUNTED))
    out: Path | None = flag(
        "Folder for the runs.", None, metavar="DIR", none="none: list the rows", group="output"
    )  # fmt: skip


@command()
def reproduce(asked: ReproduceFlags) -> int:
    """Compute published numbers, and compare.

    Each row is a number of a paper and the command that computes it. Without --out, these are listed. If the run is
    stopped, the same command resumes it.

    Example: cliploc reproduce naclip-voc21,sclip --root voc21=data --root voc20=data --out reproduced

    Example: cliploc reproduce naclip-voc21 --root voc21=data --model mini-vit --sample 20 --out rehearsal
    """
    from cliploc.cli import main
    from cliploc.jobs.reproduce import Reproduced, chosen_rows, number_in, on_model, table_of

    rows, terminal = chosen_rows(asked.rows), Terminal()
    roots = named_folders(asked.root or [], "voc21=DIR")
    if asked.out is None:
        for published in rows:
            words = published.command(roots.get(published.dataset, "DIR"), published.id)
            terminal.data(
                styled(
                    f"{published.id}: {published.number} {published.value:.2f}, {published.paper}; {published.table}",
                    "bold",
                )
            )
            terminal.data(f"  {printable(shlex.join(['cliploc', *words]))}")
        return DONE
    refuse_without("bench", "reproduce")
    out = writable(asked.out)
    more = ["--sample", str(asked.sample)] if asked.sample else []
    more += [] if asked.engine == "local" else ["--engine", asked.engine]
    more += [
        word for name in ("address", "threads") if (value := getattr(asked, name)) for word in (f"--{name}", f"{value}")
    ]
    reproduced: list[Reproduced] = []
    failed = False
    with alone_in(out):
        for row in rows:
            own, other = on_model(row, asked.model, asked.pretrained)
            why = ", ".join(filter(None, [other, f"{asked.sample} pictures" if asked.sample else ""]))
            note = f"not comparable: {why}" if why else ""
            if row.dataset not in roots:
                reproduced.append(Reproduced(row, None, None, f"not run: add --root {row.dataset}=DIR"))
                continue
            words = [*own.command(roots[row.dataset], str(out / row.id)), *more]
            terminal.say(shlex.join(["cliploc", *words]), style="dim")
            with contextlib.redirect_stdout(io.StringIO()):  # without its table; errors are printed
                code = main(words)
            ours, ends = number_in(out / row.id, row) if code in (DONE, SOME_FAILED) else (None, None)
            if code == SOME_FAILED:
                failed = True
                note = "; ".join(filter(None, [note, "some pictures failed"]))
            reproduced.append(
                Reproduced(row, ours, ends, "not run: see the line above" if code == NOTHING_DONE else note)
            )
            if code not in (DONE, SOME_FAILED, NOTHING_DONE):  # interrupted
                return code
        document = {"kind": "reproduced", "rows": [row.document() for row in reproduced]}
        computed = [row.ours is not None for row in reproduced]
        if any(computed):  # else an earlier file stays
            with own_temporaries(out, "reproduced"):
                write(out / FILE, json_text(document).encode())
    print_result(terminal, document, titled(table_of(reproduced)), as_json=asked.as_json)
    if not any(computed):
        return NOTHING_DONE
    return SOME_FAILED if failed or not all(computed) else DONE
