"""Long work over many images: evaluating a folder of maps, benchmarks. Everything here can be stopped and resumed."""
