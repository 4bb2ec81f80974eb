"""Every bench once, in a form that takes minutes: Markdown on the standard output.

    python -m bench [--thorough]

Asserts nothing about speed. Each bench in full, with its own settings: `python -m bench.towers --help`, and so on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

QUICK = {
    "towers": ["RN50", "ViT-B-32", "--batch", "1", "--rounds", "5"],
    "overhead": ["--photos", "16", "--repeats", "3", "--many", "100"],
    "vit_methods": ["--quick"],
    "memory": ["--model", "ViT-B-32", "--method", "legrad"],
    "evaluator": ["--maps", "6", "--literal-maps", "3", "--taus", "100"],
}
THOROUGH: dict[str, list[str]] = {
    "towers": ["RN50", "RN50x4", "ViT-B-32", "ViT-B-16"],
    "overhead": [],
    "vit_methods": [],
    "memory": [],
    "evaluator": [],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thorough", action="store_true", help="the figures that are reported; an hour or more")
    failed = []
    for name, arguments in (THOROUGH if parser.parse_args().thorough else QUICK).items():
        print(f"\n## {name}\n\n`{' '.join(['python -m bench.' + name, *arguments])}`\n", flush=True)
        # Each in a process of its own: one that runs out of memory does not take the others along.
        finished = subprocess.run(
            [sys.executable, "-m", f"bench.{name}", *arguments], check=False, stdout=subprocess.PIPE, text=True
        )
        print(finished.stdout if "\n|" in finished.stdout else f"```text\n{finished.stdout}```", flush=True)
        if finished.returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
