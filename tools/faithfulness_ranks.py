"""Compares two yardsticks of methods: faithfulness, of benchmarks' folders, and GT-known, as the documents have it.

    python tools/faithfulness_ranks.py OUT … --known cam=68.1 layer_cam=68.1 …

Prints the table of docs/faithfulness.md and the rank correlation (Spearman, equal values with their mean rank) of each
number with GT-known, signed so that 1 means: what localises better is more faithful. The interval is of 2,000 draws of
pictures; the methods stay, and GT-known figures are not drawn again. Several folders must be of the same pictures; of
those that are not at their end, the pictures count that all have.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from cliploc.jobs.faithfulness import NUMBER_COLUMNS, summarize
from cliploc.jobs.rows import rows_in

DRAWS = 2000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="+")
    parser.add_argument("--against", default="centre_gaussian", help="METHOD: the differences from it are given too")
    parser.add_argument("--known", nargs="*", default=[], help="METHOD=GT-known")
    parser.add_argument("--number", nargs="*", default=[], help="only these numbers; none: all but those of the cosine")
    parser.add_argument("--curve", help="a curve's mean scores with their intervals beside")
    given = parser.parse_args()
    known = {one.partition("=")[0]: float(one.partition("=")[2]) for one in given.known}
    manifests = [json.loads((out / "manifest.json").read_text()) for out in given.out]
    if len({(one["dataset"]["samples_sha256"], json.dumps(one["protocol"])) for one in manifests}) != 1:
        raise SystemExit("expected folders of the same pictures and protocol")
    numbers, settings, values = manifests[0]["numbers"], {}, {}
    runs: list[dict[str, dict]] = []
    rows = [list(rows_in(out, NUMBER_COLUMNS)) for out in given.out]
    common = set.intersection(
        *({row["sample"] for row in of_run} for of_run in rows)
    )  # of runs that are not at their end
    for of_run, manifest in zip(rows, manifests, strict=True):
        method_of = {one["id"]: one["method"] for one in manifest["settings"]}
        there = [row for row in of_run if row["sample"] in common]
        found = summarize(list(method_of), there, list(numbers))
        settings = {method_of[name]: one for name, one in found.items()} | settings  # of the first run that has it
        of_methods: dict[str, dict] = {}
        for row in there:
            if row["status"] == "ok":
                of_methods.setdefault(method_of[row["setting"]], {})[row["sample"]] = dict(row["values"])
        runs.append(of_methods)
        values = of_methods | values
    shown = given.number or [key for key in numbers if not key.endswith("_cosine")]
    places = manifests[0]["curves"][given.curve]["places"] if given.curve else []
    headings = ["method", *(numbers[key]["title"] for key in shown), *(f"{place:.0%}" for place in places)]
    headings += ["GT-known"] if known else []
    print(f"| {' | '.join(headings)} |\n{'|---' * len(headings)}|")
    first, sign = shown[0], 1 if numbers[shown[0]]["best"] == "low" else -1
    for name in sorted(settings, key=lambda one: sign * settings[one][first]):
        cells = []
        for key in shown:
            value, ends = settings[name][key], settings[name]["confidence_95"].get(key)
            cells.append("–" if value is None else f"{value:.3f} ({ends[0]:.3f}–{ends[1]:.3f})")
            if key in settings[name].get("measured", {}):
                cells[-1] += f", of {settings[name]['measured'][key]}"
        if given.curve:
            curve = settings[name]["curves"][given.curve]
            triples = zip(curve["mean"], curve["low"], curve["high"], strict=True)
            cells += [f"{mean:.2f} ({low:.2f}–{high:.2f})" for mean, low, high in triples]
        cells += [f"{known.get(name, '–')}"] if known else []
        print(f"| `{name}` | {' | '.join(cells)} |")
    if given.against in values:
        print(f"\nDifferences from {given.against} of the same run, picture by picture:")
        for of_methods in runs:
            differences(of_methods, given.against, shown)
    both = [name for name in settings if name in known]
    if not both:
        return 0
    samples = sorted(set.intersection(*(set(values[name]) for name in both)))
    gts = [known[name] for name in both]
    random = np.random.default_rng(0)
    print(f"\n{len(samples)} pictures; correlation of ranks with GT-known over {len(both)} methods:")
    for key in [one for one in given.number or numbers if numbers[one]["best"]]:
        sign = -1 if numbers[key]["best"] == "low" else 1
        found = [[values[name][one][key] for one in samples] for name in both]
        table = sign * np.array(found, np.float64)  # [methods, pictures]; NaN where it could not be computed
        drawn = []
        for _ in range(DRAWS):
            chosen = random.integers(0, len(samples), len(samples))
            drawn.append(spearmanr(gts, np.nanmean(table[:, chosen], axis=1)).statistic)
        low, high = np.quantile(drawn, [0.025, 0.975])
        print(f"- {key}: {spearmanr(gts, np.nanmean(table, axis=1)).statistic:.2f} ({low:.2f} to {high:.2f})")
    return 0


def differences(values: dict, against: str, shown: list[str]) -> None:
    """The mean of each number's paired differences, with its interval over draws of pictures."""
    for name in values:
        samples = sorted(values[name].keys() & values[against].keys())
        words = []
        for key in shown if name != against else ():
            pairs = [(values[name][one][key], values[against][one][key]) for one in samples]
            apart = np.array([a - b for a, b in pairs if a is not None and b is not None])
            drawn = apart[np.random.default_rng(0).integers(0, len(apart), (DRAWS, len(apart)))].mean(axis=1)
            low, high = np.quantile(drawn, [0.025, 0.975])
            words.append(f"{key} {apart.mean():+.3f} ({low:+.3f} to {high:+.3f})")
        if words:
            print(f"- {name}: {', '.join(words)}")


if __name__ == "__main__":
    raise SystemExit(main())
