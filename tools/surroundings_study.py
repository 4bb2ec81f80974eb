"""Measures the `surroundings` of `cliploc audit`: are the things that it names in the pictures of a name?

    python tools/surroundings_study.py ../shared/data/coco_tune

The folder is in COCO's layout; its pictures are audited with its boxes and names. For each name that is predicted in
three pictures or more, and each thing of COCO among its surroundings: the share of the name's pictures with a label of
the thing, and that of the other pictures.
"""

import argparse
from pathlib import Path

import numpy as np

from cliploc.evaluate import audit
from cliploc.label.checking.labels import read_set

FEWEST = 3


def main() -> None:
    """The study."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path)
    root = parser.parse_args().root
    labels, pictures = root / "annotations/instances_val2017.json", root / "val2017"
    shown = {one.id: {box.name for box in one.boxes} for one in read_set(labels, pictures, None).pictures}
    audited = audit(pictures, sorted(set.union(*shown.values())), truth=labels)
    shares = []
    for name in audited.names:
        own = {one.picture for one in audited.pictures if one.lean is not None and one.prediction == name.name}
        if len(own) >= FEWEST:
            print(f"{name.name}, {len(own)}: {name.surroundings}")
            for thing in name.surroundings.split(", "):
                if any(thing in there for there in shown.values()):
                    of = [
                        [thing in there for one, there in shown.items() if (one in own) == is_own]
                        for is_own in (True, False)
                    ]
                    shares.append([np.mean(some) for some in of])
    own_share, others = np.mean(shares, axis=0)
    print(f"{len(shares)} things: in {own_share:.3f} of the name's pictures, in {others:.3f} of the others")


if __name__ == "__main__":
    main()
