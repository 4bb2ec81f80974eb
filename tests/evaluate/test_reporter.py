"""What each long job tells its reporter: phases, counts, failures and remarks."""

import dataclasses
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

pytest.importorskip("pyarrow")

from cliploc import Reporter, annotate
from cliploc.cli.terminal import Terminal
from cliploc.errors import CliplocError
from cliploc.evaluate.data import open_dataset
from cliploc.evaluate.tasks.boxes.job import run_benchmark
from cliploc.options import BENCHMARK
from cliploc.runs.plan import ModelSetup, Setting
from tests.commands import CAT
from tests.evaluate.samples import wsol_folder

pytestmark = pytest.mark.usefixtures("one_model")
OPTIONS = {"device": "cpu", "batch_size": 2}


class Told(list[tuple[Any, ...]]):
    """Everything that a reporter was told, with the part that was called, in order."""

    @property
    def reporter(self) -> Reporter:
        return Reporter(**{one.name: self._part(one.name) for one in dataclasses.fields(Reporter)})

    def _part(self, name: str) -> Callable[..., None]:
        return lambda *news: self.append((name, *news))

    def of(self, *names: str) -> list[tuple[Any, ...]]:
        return [one for one in self if one[0] in names]

    def count(self, name: str) -> int:  # type: ignore[override]
        return sum(number for _, number, *_ in self.of(name))

    @property
    def failures(self) -> list[tuple[str, str]]:
        return [(source, str(error)) for _, source, error in self.of("failed")]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/broken.jpg").write_bytes(b"no picture")
    shutil.copy(CAT, tmp_path / "photos/cat.jpg")
    return tmp_path / "photos"


def test_annotate_tells_of_phases_counts_and_failures(photos: Path, tmp_path: Path) -> None:
    told = Told()
    options = {**OPTIONS, "recipe": "fast", "formats": ["csv"]}
    result = annotate(photos, ["cat"], tmp_path / "out", reporter=told.reporter, **options)
    assert told.of("phase") == [("phase", "annotate"), ("phase", "writing csv")]
    assert told.of("start") == [("start", 2, 2)]
    assert told.count("images") == 2
    assert told.failures == [("broken.jpg", f"broken.jpg: {result.failed['broken.jpg']}")]
    shutil.copy(CAT, photos / "again.jpg")
    told = Told()
    annotate(photos, ["cat"], tmp_path / "out", reporter=told.reporter, **options)
    assert told.of("start") == [("start", 1, 3)]
    assert told.count("images") == 1
    assert not told.failures  # of an earlier run: in the result only


def test_a_benchmark_tells_of_a_failed_sample_once(tmp_path: Path) -> None:
    root = wsol_folder(tmp_path / "wsol", 4)
    broken = open_dataset("wsol", root).samples[1]
    broken.path.write_bytes(b"no picture")
    data = open_dataset("wsol", root)
    setups = [ModelSetup(BENCHMARK.but(batch_size=2, device="cpu"))]
    settings = [Setting("a", 0, "cam"), Setting("b", 0, "layer_cam")]
    told = Told()
    result = run_benchmark(data, setups, settings, tmp_path / "out", workers=0, shard=2, reporter=told.reporter)
    assert told.of("phase") == [("phase", "benchmark"), ("phase", "summary")]
    assert told.of("start") == [("start", len(data), len(data))]
    assert told.count("images") == len(data)
    assert [source for source, _ in told.failures] == list(result.failed)
    assert [line for _, line in told.of("note")] == list(result.notes)


def test_the_terminal_says_failures_halves_and_remarks(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().progress("loading") as reporter:
        reporter.phase("work")
        reporter.start(1, 2)
        reporter.images(1)
        reporter.masked(3, 5)
        reporter.failed("a.jpg", CliplocError("a.jpg: not a picture"))
        reporter.halved(8)
        for _ in range(2):  # as several runs of one command say it
            reporter.note("a remark")
    out, err = capsys.readouterr()
    halved = "not enough memory for a batch of 8 pictures, done in halves"
    assert err.splitlines() == ["failed: a.jpg: not a picture", halved, "a remark"]
    assert not out


@pytest.mark.parametrize(
    ("phases", "shown"),
    [(("annotate",), ("annotate", "masked 7 of 9", "3/5")), (("annotate", "writing coco"), ("writing coco",))],
)
def test_the_bar_shows_phase_and_counts(phases: tuple[str, ...], shown: tuple[str, ...]) -> None:
    screen = io.StringIO()
    terminal = Terminal()
    terminal.err = Console(file=screen, force_terminal=True, width=120)
    with terminal.progress("loading") as reporter:
        for phase in phases:
            reporter.phase(phase)
            if phase == "annotate":
                reporter.start(3, 5)  # two were done before
                reporter.images(1)
                reporter.masked(7, 2)
    last = screen.getvalue().rpartition(phases[-1])
    for text in shown:
        assert text in "".join(last[1:])
