"""The web page and its HTTP API: a thin shell over `Localizer`, without mathematics; `cliploc serve` starts it.

Only `page` and `server` import gradio, which comes with the extra `cliploc[web]`.
"""

from __future__ import annotations
