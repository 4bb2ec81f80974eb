"""The web page and its HTTP API, a thin shell over `Localizer`; `cliploc serve` starts it.

`find` has the addresses of the page, `answers` reads and answers requests, `settings` is what a visitor may set,
`service` holds the models, `runs` the searches in progress, `store` the files; `view` and `downloads` make what users
get. `guard` stands before every application, the editor's and Label Studio's too, and `server` listens.
"""
