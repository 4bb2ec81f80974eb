"""A folder teaches itself, and corrections teach it: directions in the tower's features, fitted without training."""
