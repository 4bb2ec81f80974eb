"""The web page and its HTTP API, a thin shell over `Localizer`; `cliploc serve` starts it.

`find` is the find page: its addresses. `answers` reads a request and answers it, pictures and downloads are in `store`,
`view` and `downloads` make what is shown and saved. `service` holds the models, `runs` the searches in progress.
`editor` is the editor of an annotation's drafts (`cliploc review`).

Before every application stands a gate of `guard`; with `clients` it limits what a visitor can send. `server` listens,
and limits connections. What is served needs the extra `cliploc[web]`.
"""
