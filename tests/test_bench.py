"""What `make bench-quick` does not show: what is measured and what is not; how fast is for people to judge."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

cnn_methods: Any = pytest.importorskip("bench.cnn_methods", reason="benches lie beside the package, in its repository")
first_result: Any = pytest.importorskip(
    "bench.first_result", reason="benches lie beside the package, in its repository"
)
resident: Any = pytest.importorskip("bench.resident", reason="benches lie beside the package, in its repository")


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    """`ru_maxrss` is inherited on Linux: there the child begins with the parent's 400 MiB and more."""
    held = bytearray(400 * 2**20)
    held[:: 2**12] = b"1" * len(held[:: 2**12])  # every page is used
    assert 400 < resident.resident_mib() <= resident.peak_mib()
    code = "from bench.resident import peak_mib; print(peak_mib())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert 1 < float(ran.stdout) < 200


def test_a_command_that_ends_otherwise_is_not_timed() -> None:
    with pytest.raises(RuntimeError, match="expected exit code 0, got 3"):
        first_result.processor_seconds(["-c", "import sys; sys.exit(3)"], 0, first_result.ROOT / "src")


def test_maps_that_differ_are_not_timed() -> None:
    scene = cnn_methods.Scene(quick=True)
    row = ("grad_cam", "fp32", scene.ours("layer_cam"), "torchcam", lambda: scene.torchcam("GradCAM"))
    with pytest.raises(RuntimeError, match=r"grad_cam: maps correlate by .* only, and their times cannot be compared"):
        cnn_methods.measure(row, scene.images[:1], 2, 1, 1.0)


def test_the_page_gets_the_tables_and_the_names_of_benches_that_time_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("prose\n<!-- bench: it -->\nold\n<!-- end -->\n<!-- bench-busy: it -->\nother\n<!-- end -->\n")
    monkeypatch.setattr(sys, "argv", ["bench", "--minutes", "0", "--write", str(page)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("bench", run_name="__main__")
    assert ended.value.code == 0
    start, after = "prose\n<!-- bench: it -->\n", "<!-- end -->\n<!-- bench-busy: it -->\nother\n<!-- end -->\n"
    written = page.read_text()
    assert written.startswith(start)
    assert written.endswith(after)
    tables = written.removeprefix(start).removesuffix(after)
    assert all(word in tables for word in ("torch", "Left out: First result; "))
    assert "old" not in tables
