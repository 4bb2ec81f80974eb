"""What every page shares: text made safe, numbers, and a style for light and dark screens of any width."""

from __future__ import annotations

import html
from typing import Any

import numpy as np


def escape(value: object) -> str:
    """Any value as text in HTML, also within quotes."""
    return html.escape(str(value), quote=True)


def decimal(value: Any, decimals: int) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.{decimals}f}"


def count(amount: int, noun: str) -> str:
    """1 photo, 2 photos."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


STYLE = """
:root { --paper: #fff; --ink: #16181d; --soft: #555c68; --line: #d9dde4; --card: #f5f6f8; --link: #0b57d0;
  --right: #0a6b3d; --wrong: #a8320a; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14161a; --ink: #eceef2; --soft: #a9b1bd; --line: #343a44; --card: #1d2026; --link: #8ab4f8;
    --right: #6fd19b; --wrong: #ff9c73; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header, main { max-width: 1360px; margin: 0 auto; padding: 0 clamp(14px, 3vw, 40px); }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 1.6rem 0 .8rem; }
h2 { font-size: 1.2rem; margin: 0 0 .7rem; overflow-wrap: anywhere; }
h2 small, .credit, figcaption { color: var(--soft); font-weight: 400; font-size: .88rem; }
dl { display: flex; flex-wrap: wrap; gap: .4rem 1.6rem; margin: 0; }
dl div { display: flex; gap: .45rem; }
dt { color: var(--soft); }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.hint { background: var(--card); border-left: 4px solid var(--link); padding: .6rem .9rem; margin: 1rem 0;
  overflow-wrap: anywhere; }
section, article { border-top: 1px solid var(--line); padding: 1.4rem 0; margin-top: 1.2rem; }
a { color: var(--link); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .32rem .9rem .32rem 0; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-weight: 400; max-width: 20rem; overflow: hidden; text-overflow: ellipsis; }
thead th { color: var(--soft); }
td.n { text-align: right; }
.right { color: var(--right); }
.wrong { color: var(--wrong); font-weight: 600; }
.pictures { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr));
  align-items: start; }
figure { margin: 0; min-width: 0; max-width: 520px; }
img { display: block; width: 100%; height: auto; border-radius: 4px; }
figcaption { padding-top: .45rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); }
.chip { margin-right: .8rem; color: var(--ink); }
.chip i { display: inline-block; width: .85em; height: .85em; margin-right: .4em; border: 1px solid var(--soft);
  border-radius: 2px; vertical-align: -.05em; }
.credit { margin: .7rem 0 0; }
"""
