"""`cliploc review`: the editor in a browser."""
