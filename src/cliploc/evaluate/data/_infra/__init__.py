"""Code that all readers share; it knows no particular reader."""
