"""What the first result costs: processor time and peak memory of whole commands, beside those of importing torch.

    python -m bench.first_result [--rounds 5] [--beside SRC] [--out bench/results]

Each row is a process of its own, from its start to its end, with one thread; user and system time together, the least
of all rounds, which take turns. `--beside` names the `src` folder of another checkout, such as that of an earlier
commit: its times stand in a column of their own. One run beforehand, which is not counted, has Python compile the
modules, as installing a package does. Memory is that of one more run: the most that was resident at once. The large
photograph is the other one with 4,000×3,000 pixels.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TORCH = "python -c 'import torch'"
PHOTO = str(files("cliploc") / "demo_photos" / "cat.jpg")
LOCALIZE = ["-m", "cliploc", "localize", PHOTO, "-p", "cat"]
ROWS: dict[str, tuple[list[str], int]] = {  # arguments of Python, and the exit code
    TORCH: (["-c", "import torch"], 0),
    "python -c 'import cliploc'": (["-c", "import cliploc"], 0),
    "cliploc --help": (["-m", "cliploc", "--help"], 0),
    "cliploc localize --help": (["-m", "cliploc", "localize", "--help"], 0),
    "cliploc models nonesuch": (["-m", "cliploc", "models", "nonesuch"], 2),
    "cliploc localize photo.jpg -p cat": (LOCALIZE, 0),
    "… --model mini-vit": ([*LOCALIZE, "--model", "mini-vit"], 0),
    "… --model RN500 (there is none)": ([*LOCALIZE, "--model", "RN500"], 2),
    "… --method camm (there is none)": ([*LOCALIZE, "--method", "camm"], 2),
}

LARGE = (4000, 3000)
PEAKS = {  # what is measured → arguments of `localize` after the photograph, and whether that is the large one
    "cliploc localize photo.jpg -p cat": ([], False),
    "… --model mini-vit": (["--model", "mini-vit"], False),
    "cliploc localize large.jpg -p cat": ([], True),
    "… --out found": (["--out", "found"], True),
}
TOLD = """
import sys
from bench.resident import peak_mib
from cliploc.cli import main

code = main()
print(peak_mib(), file=sys.stderr)
sys.exit(code)
"""


def peaks() -> dict[str, float]:
    """The most memory of whole commands of this checkout, in MiB."""
    from PIL import Image

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.jpg"
        with Image.open(PHOTO) as photo:
            photo.resize(LARGE).save(large, quality=90)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
        for row, (words, is_large) in PEAKS.items():
            command = [sys.executable, "-c", TOLD, "localize", str(large) if is_large else PHOTO, "-p", "cat", *words]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
            found[row] = float(done.stderr.splitlines()[-1])
    return found


def processor_seconds(arguments: list[str], code: int, source: Path) -> float:
    """Of one process that imports cliploc from a folder.

    Raises:
        RuntimeError: it ends with another exit code.
    """
    own = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(arguments)}: expected exit code {code}, got {done.returncode}: {done.stderr}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def table(cells: list[dict[str, Any]], sources: list[str]) -> list[str]:
    """A line for each command; above what torch takes in the column of this checkout."""
    titles = {"here": "processor, s", "beside": "before, s"}
    lines = [f"| | {' | '.join(titles[one] for one in sources)} | above torch, s |", "|---" * (len(sources) + 2) + "|"]
    least = {(cell["row"], cell["source"]): min(cell["seconds"]) for cell in cells}
    for row in ROWS:
        above = least[row, "here"] - least[TORCH, "here"]
        times = " | ".join(f"{least[row, one]:.2f}" for one in sources)
        lines.append(f"| `{row}` | {times} | {f'{above:.2f}' if above > 0 else '–'} |")
    return lines


def main(rounds: int = 5, beside: Path | None = None, out: Path | None = None) -> int:
    """Prints the table.

    Args:
        rounds: of each row.
        beside: the `src` folder of another checkout; None for none.
        out: where first_result.json and first_result.md go; None to write nothing.
    """
    from bench.keep import headed, keep
    from bench.vit_methods import machine

    about = machine(1)
    sources = {**({} if beside is None else {"beside": beside}), "here": ROOT / "src"}
    cells: list[dict[str, Any]] = [{"row": row, "source": one, "seconds": []} for row in ROWS for one in sources]
    for number in range(rounds + 1):
        for cell in cells:
            seconds = processor_seconds(*ROWS[cell["row"]], sources[cell["source"]])
            if number > 0:
                cell["seconds"].append(seconds)
    lines, most = table(cells, list(sources)), peaks()
    lines += ["", "| | peak, MiB |", "|---|---|", *(f"| `{row}` | {mib:.0f} |" for row, mib in most.items())]
    print("\n".join(lines))
    text = f"Made by `python -m bench.first_result`, whose head says what is measured; the least of {rounds} rounds."
    keep(
        out,
        "first_result",
        {"machine": about, "cells": cells, "peaks": most},
        headed("What the first result costs", text, about, lines),
    )
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--beside", type=Path, metavar="SRC", help="the src folder of another checkout, to compare with"
    )
    parser.add_argument("--out", type=Path, help="write first_result.json and first_result.md here")
    given = parser.parse_args()
    sys.exit(main(given.rounds, given.beside, given.out))
