"""The server of the review editor, in a thread of this process."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cliploc.jobs.annotation_edits import corrections_in, plain_corrections
from cliploc.jobs.review_folder import ReviewFolder
from cliploc.jobs.suggest import Suggester


@contextlib.contextmanager
def served(out: Path) -> Iterator[str]:
    """The editor of a run's folder → its address."""
    from cliploc.web.editor import application  # here: they need the extra `web`
    from cliploc.web.server import listener

    with ReviewFolder.opened(out) as folder:
        server = listener(application(folder, Suggester("mini", device="cpu", recipe="fast")), port=0)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def corrections(out: Path) -> dict:
    """The corrections of a run, as a later call reads them: corrections.json and the saves that follow it."""
    run = json.loads((out / "summary.json").read_text())["run"]
    pictures, reviews = corrections_in(out, run)
    return {"pictures": plain_corrections(pictures), "reviews": reviews}
