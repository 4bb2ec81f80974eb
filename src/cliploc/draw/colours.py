"""The colours of names: the same in overlays, on every page and in exports."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

Colour = tuple[int, int, int]

INK: Colour = (17, 17, 17)
PAPER: Colour = (255, 255, 255)

# Ten colours with the largest smallest distance (Oklab) for normal vision and, weighted 1.7, for protanopia and
# deuteranopia as simulated by Machado et al. 2009: 0.196 and 0.115; Okabe & Ito's seven have 0.156 and 0.076. Strong
# enough to be seen on photographs; in an order in which the first few are furthest apart. No two are reds.
NAME_COLOURS: tuple[Colour, ...] = (
    (255, 187, 0), (0, 119, 187), (204, 17, 136), (34, 204, 221), (153, 85, 34),
    (153, 255, 170), (119, 0, 255), (255, 119, 136), (17, 170, 0), (170, 136, 255),
)  # fmt: skip

# Okabe & Ito (2008), "Color Universal Design", without black and yellow: thin lines of these can be read on paper.
LINE_COLOURS: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167), (0, 114, 178),
)  # fmt: skip


def name_colour(index: int) -> Colour:
    """The colour of the name with this index, the same in every picture."""
    return NAME_COLOURS[index % len(NAME_COLOURS)]


def as_hex(colour: Colour) -> str:
    """The colour as HTML writes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def distinct_colours(count: int, together: Iterable[Iterable[int]]) -> list[Colour]:
    """Colours that differ for names often in one picture; of too many names, the most frequent choose first."""
    if count <= len(NAME_COLOURS):
        return [name_colour(index) for index in range(count)]
    frequency: Counter[int] = Counter()
    neighbours: dict[int, Counter[int]] = {}
    for indices in together:
        names = sorted(set(indices))
        frequency.update(names)
        for name in names:
            neighbours.setdefault(name, Counter()).update(other for other in names if other != name)
    chosen: dict[int, int] = {}
    used: Counter[int] = Counter()
    for name in sorted(range(count), key=lambda place: (-frequency[place], place)):
        clashes: Counter[int] = Counter()
        for other, times in neighbours.get(name, Counter()).items():
            if other in chosen:
                clashes[chosen[other]] += times
        chosen[name] = min(range(len(NAME_COLOURS)), key=lambda colour: (clashes[colour], used[colour], colour))
        used[chosen[name]] += 1
    return [NAME_COLOURS[chosen[index]] for index in range(count)]


def text_colour(background: Sequence[int]) -> Colour:
    """Black or white, whichever has more contrast with the background (by WCAG's relative luminance)."""
    srgb = np.array(background) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return INK if (luminance + 0.05) / 0.055 >= 1.05 / (luminance + 0.05) else PAPER
