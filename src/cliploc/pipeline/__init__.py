"""From requests to results, stage by stage: prepare → texts → views → decide. `Localizer` puts the stages together.

- `requests`: what a caller asks for, and the result, under the caller's own id.
- `prepare`: pictures are decoded and resized to the model's input, ahead of the tower, and gathered into batches.
- `texts`, `exemplars`: names and the pictures that stand for names become embeddings, each once.
- `tasks`: a method with its options, trained heads and box rule, checked against the tower.
- `views`, `looks`: forward passes for each scale, mirror image and window of a batch; the maps of all methods; errors
  for NaN.
- `decide`, `bank`: which names are found, and why others are not; presence scores of uncalibrated models.
- `pipeline`: the stages in order, for one set of options.
- `inside`: tensors of one forward pass, for `Localizer.trace`.
- `modes`: torch's modes, which the caller may have set, and forked processes.
"""
