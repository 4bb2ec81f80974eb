"""The web page and its HTTP API, a thin shell over `Localizer`; `cliploc serve` starts it.

`find` has the addresses of the page, `view` what it asks and is shown, `settings` is what a visitor may set, `service`
holds the models, `runs` the searches in progress, `uploads` the files of visitors, `downloads` what users get. `server`
listens, with a gate before every application, the editor's and Label Studio's too.
"""
