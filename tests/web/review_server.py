"""The server of the review editor, in a thread of this process."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from cliploc.jobs.annotation_edits import corrections_in, plain_corrections
from cliploc.jobs.review_folder import ReviewFolder
from cliploc.jobs.suggest import Suggester
from tests.web.asking import running


@contextlib.contextmanager
def served(out: Path) -> Iterator[str]:
    """The editor of a run's folder → its address."""
    from cliploc.web.editor import application  # here: it needs the extra `web`

    suggester = Suggester("mini", device="cpu", recipe="fast")
    with ReviewFolder.opened(out) as folder, running(application(folder, suggester)) as address:
        yield address


def corrections(out: Path) -> dict:
    """The corrections of a run, as a later call reads them: corrections.json and the saves that follow it."""
    run = json.loads((out / "summary.json").read_text())["run"]
    pictures, reviews = corrections_in(out, run)
    return {"pictures": plain_corrections(pictures), "reviews": reviews}
