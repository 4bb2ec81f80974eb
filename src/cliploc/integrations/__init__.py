"""cliploc where another library expects a model of its own kind; each file needs its library."""
