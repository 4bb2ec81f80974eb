"""Door 2: how good are maps and boxes? Data sets, metrics, tasks, and the training of TS-CAM's and LCTR's layers."""
