"""Compares two yardsticks of methods: faithfulness, of a benchmark's folder, and GT-known, as the documents have it.

    python tools/faithfulness_ranks.py OUT cam=68.1 layer_cam=68.1 …

Prints the table of docs/faithfulness.md and the rank correlation (Spearman, equal values with their mean rank) of each
number with GT-known, signed so that 1 means: what localises better is more faithful. The interval is of 2,000 draws of
pictures (the methods stay): GT-known figures are not drawn again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from cliploc.jobs.rows import rows_in

DRAWS = 2000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("known", nargs="+", help="METHOD=GT-known")
    given = parser.parse_args()
    known = {one.partition("=")[0]: float(one.partition("=")[2]) for one in given.known}
    manifest = json.loads((given.out / "manifest.json").read_text())
    settings = json.loads((given.out / "summary.json").read_text())["settings"]
    method_of = {one["id"]: one["method"] for one in manifest["settings"]}
    shown = [key for key, number in manifest["numbers"].items() if number["best"]]
    print(f"| method | {' | '.join(manifest['numbers'][key]['title'] for key in shown)} | GT-known |")
    print("|---" * (len(shown) + 2) + "|")
    first = shown[0]
    sign = 1 if manifest["numbers"][first]["best"] == "low" else -1
    for name in sorted(settings, key=lambda one: sign * settings[one][first]):
        cells = []
        for key in shown:
            low, high = settings[name]["confidence_95"][key]
            cells.append(f"{settings[name][key]:.3f} ({low:.3f}–{high:.3f})")
        gt = known.get(method_of[name])
        print(f"| `{method_of[name]}` | {' | '.join(cells)} | {'–' if gt is None else gt} |")
    values: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows_in(given.out, ["sample", "setting", "status", "values"]):
        if row["status"] == "ok":
            values.setdefault(row["setting"], {})[row["sample"]] = dict(row["values"])
    both = [name for name in settings if method_of[name] in known]
    samples = sorted(set.intersection(*(set(values[name]) for name in both)))
    gts = [known[method_of[name]] for name in both]
    random = np.random.default_rng(0)
    print(f"\n{len(samples)} pictures; correlation of ranks with GT-known over {len(both)} methods:")
    for key in shown:
        sign = -1 if manifest["numbers"][key]["best"] == "low" else 1
        table = sign * np.array([[values[name][one][key] for one in samples] for name in both])  # [methods, pictures]
        drawn = []
        for _ in range(DRAWS):
            chosen = random.integers(0, len(samples), len(samples))
            drawn.append(spearmanr(gts, table[:, chosen].mean(axis=1)).statistic)
        low, high = np.quantile(drawn, [0.025, 0.975])
        print(f"- {key}: {spearmanr(gts, table.mean(axis=1)).statistic:.2f} ({low:.2f} to {high:.2f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
