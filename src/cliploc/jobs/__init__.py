"""Long work over many images: annotation, benchmarks, evaluation of a folder of maps. Runs can be resumed."""
