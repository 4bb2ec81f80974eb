"""Compares two yardsticks of methods: faithfulness, of benchmarks' folders, and GT-known, as the documents have it.

    python tools/faithfulness_ranks.py OUT … --known cam=68.1 layer_cam=68.1 …

Prints the tables of docs/studies/faithfulness.md, and the rank correlation (Spearman, equal values with their mean
rank) of each number with GT-known, signed so that 1 means: what localises better is more faithful.
The interval is of 2,000 draws of pictures; the methods stay, and GT-known figures are not drawn again. Several
folders must be of the same pictures and protocol. They may have other methods and other metrics; what two of them have
is taken from the first. Of folders that are not at their end, the pictures count that all have.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from cliploc.evaluate.tasks.faithfulness.job import ValueRow, ValueTally
from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
from cliploc.evaluate.tasks.rows import rows_of
from cliploc.evaluate.tasks.task import summed_up

DRAWS = 2000
OfMethod = dict[str, dict[str, float | None]]  # picture → number → value
Values = dict[str, OfMethod]  # of each method


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
    numbers = {key: one for manifest in reversed(manifests) for key, one in manifest["numbers"].items()}
    numbers = {key: numbers[key] for one in chosen_metrics(_metrics(manifests)) for key in one.numbers}
    rows = [list(rows_of(out, ValueRow)) for out in given.out]
    common = set.intersection(*({row.sample for row in of_run} for of_run in rows))
    settings: dict[str, dict[str, Any]] = {}
    runs: list[Values] = []
    for of_run, manifest in zip(rows, manifests, strict=True):
        method_of = {one["id"]: one["method"] for one in manifest["settings"]}
        there = [row for row in of_run if row.sample in common]
        for name, one in summed_up(there, {one: ValueTally(list(manifest["numbers"])) for one in method_of}).items():
            earlier = settings.setdefault(method_of[name], {})
            parts = {key: one.get(key, {}) | earlier.get(key, {}) for key in ("confidence_95", "measured", "curves")}
            settings[method_of[name]] = {key: one[key] for key in manifest["numbers"]} | earlier | parts
        values: Values = {}
        for row in there:
            if row.ok:
                values.setdefault(method_of[row.setting], {})[row.sample] = dict(row.values)
        runs.append(values)
    values = {}
    for run in reversed(runs):
        for name, of_method in run.items():
            for sample, found in of_method.items():
                values.setdefault(name, {}).setdefault(sample, {}).update(found)
    shown = given.number or [key for key in numbers if not key.endswith("_cosine")]
    axes = {name: axis for manifest in manifests for name, axis in manifest["curves"].items()}
    places = axes[given.curve]["places"] if given.curve else []
    headings = ["method", *(numbers[key]["title"] for key in shown), *(f"{place:.0%}" for place in places)]
    headings += ["GT-known"] if known else []
    print(f"| {' | '.join(headings)} |\n{'|---' * len(headings)}|")
    first, sign = shown[0], 1 if numbers[shown[0]]["best"] == "low" else -1
    there = [name for name in settings if any(settings[name].get(key) is not None for key in shown)]
    for name in sorted(there, key=lambda one: sign * (settings[one].get(first) or 0)):
        cells = []
        for key in shown:
            value, ends = settings[name].get(key), settings[name]["confidence_95"].get(key)
            cells.append("–" if value is None else f"{value:.3f} ({ends[0]:.3f}–{ends[1]:.3f})")
            if value is not None and key in settings[name]["measured"]:
                cells[-1] += f", of {settings[name]['measured'][key]}"
        if given.curve:
            curve = settings[name]["curves"][given.curve]
            triples = zip(curve["mean"], curve["low"], curve["high"], strict=True)
            cells += [f"{mean:.2f} ({low:.2f}–{high:.2f})" for mean, low, high in triples]
        cells += [f"{known.get(name, '–')}"] if known else []
        print(f"| `{name}` | {' | '.join(cells)} |")
    precisions = [manifest["settings"][0]["masked_precision"] for manifest in manifests]
    for out, run, precision in zip(given.out, runs, precisions, strict=True):
        alike = [run, *(other for other, one in zip(runs, precisions, strict=True) if one == precision)]
        if reference := next((other[given.against] for other in alike if given.against in other), None):
            print(f"\nDifferences from {given.against} in {precision}, {out.name}, picture by picture:")
            differences(run, reference, shown)
    print(f"\n{len(common)} pictures; correlation of ranks with GT-known:") if known else None
    for key in [one for one in given.number or numbers if numbers[one]["best"] and known]:
        both = [name for name in values if name in known and any(key in one for one in values[name].values())]
        samples = sorted(set.intersection(*(set(values[name]) for name in both)))
        gts, sign = [known[name] for name in both], -1 if numbers[key]["best"] == "low" else 1
        found = [[values[name][one].get(key) for one in samples] for name in both]
        table = sign * np.array(found, np.float64)  # [methods, pictures]; NaN where it could not be computed
        random, drawn = np.random.default_rng(0), []
        for _ in range(DRAWS):
            chosen = random.integers(0, len(samples), len(samples))
            drawn.append(spearmanr(gts, np.nanmean(table[:, chosen], axis=1)).statistic)
        low, high = np.quantile(drawn, [0.025, 0.975])
        here = spearmanr(gts, np.nanmean(table, axis=1)).statistic
        print(f"- {key}: {here:.2f} ({low:.2f} to {high:.2f}), {len(both)} methods")
    return 0


def _metrics(manifests: list[dict[str, Any]]) -> list[str]:
    return [one for manifest in manifests for one in manifest["metrics"]]


def differences(values: Values, reference: OfMethod, shown: list[str]) -> None:
    """The mean of each number's paired differences, with its interval over draws of pictures."""
    for name, of_method in values.items():
        samples = sorted(of_method.keys() & reference.keys())
        words = []
        for key in shown if of_method is not reference else ():
            pairs = [(of_method[one].get(key), reference[one].get(key)) for one in samples]
            apart = np.array([a - b for a, b in pairs if a is not None and b is not None])
            if not len(apart):
                continue
            drawn = apart[np.random.default_rng(0).integers(0, len(apart), (DRAWS, len(apart)))].mean(axis=1)
            low, high = np.quantile(drawn, [0.025, 0.975])
            words.append(f"{key} {apart.mean():+.3f} ({low:+.3f} to {high:+.3f})")
        if words:
            print(f"- {name}: {', '.join(words)}")


if __name__ == "__main__":
    raise SystemExit(main())
