"""From requests to results; `flow` is the whole way, in order. `Localizer` makes a flow for each set of options.

- `flow`: requests → prepare → passes → presence → refine → join → boxes → results, batch by batch.
- `prepare`: what a caller asks for, and what comes back; pictures decoded and resized, ahead of the tower.
- `texts`: names, and the pictures that stand for names, become embeddings, each once.
- `tasks`: a method with its options, trained heads and box rule, checked against the tower.
- `passes`: forward passes of pictures and windows; how their maps lie over the picture; their tensors.
- `presence`: which names are there, and why others are not; `second_look`: the chance that a box is right.
- `steps`: refinements on the grid and over the picture.
- `running`: devices, torch's modes, and the next batch in another thread.
"""
