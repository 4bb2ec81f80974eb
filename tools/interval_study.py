"""How often do the intervals of MaxBoxAcc and V2 hold the true value? The table of docs/studies/statistics.md.

The pictures of a finished benchmark stand for all there are: so the true value is known. Sets of n pictures are drawn
from them, with replacement, and each gives an interval. "Percentile" is the middle 95 % of bootstrap draws, each at its
own best τ; "reflected" turns it round the value of the set; "debiased" is what `cliploc benchmark` reports
(`Bootstrap.around`).

    cliploc benchmark boxes --dataset wsol --root ../shared/data/ilsvrc_val_dev --method cam --out /tmp/cam
    python tools/interval_study.py /tmp/cam --setting mini_cam
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cliploc.evaluate import metrics
from cliploc.runs.store import rows_in

SETS, SIZES = 400, (50, 100, 300, 677)
Right = npt.NDArray[np.float32]  # [n, τ] whether each picture is right at each τ
COLUMNS = ("hits_largest_50", "hits_every_30", "hits_every_50", "hits_every_70")
NUMBERS = {"MaxBoxAcc": COLUMNS[:1], "MaxBoxAccV2": COLUMNS[1:]}  # → the columns of which it is the mean


def right_at(run: Path, setting: str) -> dict[str, Right]:
    """Column → whether each picture is right at each τ."""
    parts = {column: metrics.MaxBoxAcc() for column in COLUMNS}
    for row in rows_in(run, ["sample", "setting", "highest", *COLUMNS], "row.setting = ?", setting):
        for column, part in parts.items():
            hits = {"highest": row["highest"], metrics.LARGEST_HITS: row[column]}
            part.add(row["sample"], hits, None, None)
    return {column: part.distinct(metrics.TAUS)[0].astype(np.float32) for column, part in parts.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--setting", required=True)
    given = parser.parse_args()
    right = right_at(given.run, given.setting)
    bootstrap, random = metrics.Bootstrap(), np.random.default_rng(0)
    print("| | pictures | too high by | interval | holds it | it is below | it is above | width |")
    print("|---|---|---|---|---|---|---|---|")
    for title, columns in NUMBERS.items():
        true = float(np.mean([right[column].mean(axis=0).max() for column in columns]))
        for size in SIZES:
            found: dict[str, list[tuple[float, float]]] = {"percentile": [], "reflected": [], "debiased": []}
            values = []
            for _ in range(SETS):
                chosen = random.integers(0, len(right[columns[0]]), size)
                parts = [right[column][chosen] for column in columns]
                value = float(np.mean([part.mean(axis=0).max() for part in parts]))
                drawn = [bootstrap.replicated(part, lambda means: means.max(axis=1)) for part in parts]
                replicates = np.mean([each for each in drawn if each is not None], axis=0)
                values.append(value)
                found["percentile"].append(bootstrap.quantiles(replicates))
                found["reflected"].append(
                    (2 * value - found["percentile"][-1][1], 2 * value - found["percentile"][-1][0])
                )
                found["debiased"].append(bootstrap.around(value, replicates, [str(i) for i in range(size)]))
            for kind, intervals in found.items():
                low, high = np.array(intervals).T
                below, above = (true < low).mean(), (true > high).mean()
                shares = " | ".join(f"{100 * share:.1f} %" for share in (1 - below - above, below, above))
                high_by = 100 * (np.mean(values) - true)
                print(f"| {title} | {size} | {high_by:.2f} | {kind} | {shares} | {100 * (high - low).mean():.1f} |")


if __name__ == "__main__":
    main()
