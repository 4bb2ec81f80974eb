"""Reads `Example:` in a docstring as the site's section of examples (`extensions` of mkdocstrings in mkdocs.yml).

The site's parser knows only `Examples:`. It would show any other title as a box of running text.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ONE = re.compile(r"^(\s*)Example:$", re.MULTILINE)


class ExampleSections(Extension):
    """Renames the section before the docstring is parsed."""

    def on_object(self, *, obj: Object, **others: Any) -> None:
        """Called for each module, class, function and attribute that was read."""
        del others
        if obj.docstring is not None:
            obj.docstring.value = ONE.sub(r"\1Examples:", obj.docstring.value)
