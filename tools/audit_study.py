"""How well `cliploc audit` foretells that a prediction is lost when the background is replaced.

    python tools/audit_study.py ../shared/data/ilsvrc_val_report [--model mini] [--fit]

Each picture is classified among ImageNet's names; its pixels outside the found box are replaced by those of another
picture, twice. A prediction that is lost in either swap counts as lost. As this depends on the two, it is done five
times with other donors, and an AUROC is the mean of five. The donors of the swaps are other pictures than those of the
features. `--fit` prints the numbers of `RISK` and `BASELINE`: on ilsvrc_val_dev only.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from cliploc import Options
from cliploc.evaluate.auditing.measure import DONORS, SWAPS, Auditor
from cliploc.find.calibration import fit_logistic, reliability

MOST = 120  # pictures in memory at a time, which are each other's donors
TIMES = 5
DRAWS = 500


def examples(root: Path, model: str) -> tuple[np.ndarray, np.ndarray]:
    """What the risk is told from `[n, 3]`, and whether the prediction was lost `[n, TIMES]`."""
    auditor = Auditor(Options(model=model), "imagenet")
    files = sorted((root / "val").glob("*.JPEG"))
    facts, lost, rng = [], [], np.random.default_rng(0)
    rng.shuffle(files)
    for start in range(0, len(files), MOST):
        part = files[start : start + MOST]
        every = [*auditor.see({file.name: file for file in part}, {})]
        for seen in every:
            if seen.box == "none":
                continue
            others = [other for other in every if other.first != seen.first]
            donors = [others[i] for i in rng.permutation(len(others))[: DONORS + TIMES * SWAPS]]
            facts.append(auditor.facts(seen, auditor.swapped(seen, donors[:DONORS])))
            swapped = auditor.embed(auditor.pixels(seen, donors[DONORS:]))[:-1]  # without the background alone
            lost.append((auditor.margins(swapped, seen.first) < 0).view(TIMES, SWAPS).any(dim=1).tolist())
    print(f"{len(files)} pictures, {len(lost)} judged, {np.mean(lost):.3f} lost")
    return np.concatenate(facts), np.array(lost)


def mean_auroc(lost: np.ndarray, chance: np.ndarray) -> float:
    """The mean of all times."""
    return float(np.mean([roc_auc_score(once, chance) for once in lost.T]))


def main() -> None:
    """The study."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--fit", action="store_true")
    args = parser.parse_args()
    facts, lost = examples(args.root, args.model)
    auditor = Auditor(Options(model=args.model), "imagenet")
    chances = np.stack([auditor.risk(facts), auditor.baseline(facts[:, :2])], axis=1)  # [n, 2]
    if args.fit:
        for name, columns in (("RISK", [0, 1, 2]), ("BASELINE", [0, 1])):
            told = np.repeat(facts[:, columns], TIMES, axis=0)  # [n * TIMES, F]
            print(name, fit_logistic(told, lost.ravel(), np.ones(lost.size)))
            folds = np.arange(len(lost)) % 10
            held = np.zeros(len(lost))
            for fold in range(10):
                some = np.repeat(folds != fold, TIMES)
                fitted = fit_logistic(told[some], lost.ravel()[some], np.ones(some.sum()))
                held[folds == fold] = fitted(facts[folds == fold][:, columns])
            print(f"  AUROC on left-out tenths {mean_auroc(lost, held):.3f}")
        return
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(lost), size=len(lost)) for _ in range(DRAWS)]
    for name, chance in zip(("risk", "baseline"), chances.T, strict=True):
        drawn = [mean_auroc(lost[draw], chance[draw]) for draw in draws]
        low, high = np.quantile(drawn, [0.025, 0.975])
        error = reliability(np.repeat(chance, TIMES), lost.ravel())
        about = f"{mean_auroc(lost, chance):.3f} [{low:.3f}, {high:.3f}]"
        print(f"{name}: AUROC {about}, mean {chance.mean():.3f}, calibration error {error:.3f}")
    gains = [np.subtract(*(mean_auroc(lost[draw], chance[draw]) for chance in chances.T)) for draw in draws]
    low, high = np.quantile(gains, [0.025, 0.975])
    print(f"gain {np.mean(gains):+.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
