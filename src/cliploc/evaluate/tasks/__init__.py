"""What `cliploc benchmark` and `evaluate` measure: a folder for each task; the files beside them are shared."""
