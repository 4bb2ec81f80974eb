"""The web page and its HTTP API, a thin shell over `Localizer`; `cliploc serve` starts it.

`find` is the find page: its addresses, answered by `answers`. A request is read by `questions`, pictures and downloads
are in `store`, `view` and `downloads` make what is shown and saved, `menus` what can be chosen. `service` holds the
models, `runs` the searches in progress. `editor` is the editor of an annotation's drafts (`cliploc review`).

Before every application stands a gate of `guard`; with `clients` and `connections` it limits what a visitor can
send. `server` listens. What is served needs the extra `cliploc[web]`.
"""
