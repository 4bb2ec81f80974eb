"""The web page and its HTTP API, a thin shell over `Localizer`; `cliploc serve` starts it.

`review` is the editor of an annotation's drafts, which `cliploc review` starts, behind the same gate of `guard`.

`server` serves `page`, which consists of `layout` (components), `events` (what they do), `view` (HTML) and `api` (the
page's functions for programs); beside it, `rest` answers plain requests of programs. `service` holds the models, `runs`
the searches that are in progress. `guard`, `requests`, `hosts`, `rates`, `passwords`, `connections` and `uploads` limit
what a visitor can send. Gradio comes with the extra `cliploc[web]`; only `server`, `page`, `layout`, `components`,
`events`, `api` and `rest` need it.
"""

from __future__ import annotations
