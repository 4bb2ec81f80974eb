"""From requests to results, stage by stage: prepare → texts → views → decide. `Localizer` puts the stages together.

- `requests`: what is asked for, and what came of it, under the asker's own id.
- `prepare`: pictures are decoded and laid onto the model's input, ahead of the tower, and gathered into batches.
- `texts`: names become text embeddings, each once.
- `tasks`: a method with its options, trained heads and box rule, checked against the tower.
- `views`: one forward pass for each scale and mirror image of a batch; the maps of all methods; the NaN policy.
- `decide`: which names are found, and why others are not.
"""
