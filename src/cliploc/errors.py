"""Errors that the user can mend, each in one line.

Every message says what was expected, what came and what to do. The command line turns these into exit codes: a
`UsageError` or `ModelError` means nothing could be done (2); an `InputError` concerns one picture among others (1).
"""

from collections.abc import Iterable

LISTED = 20  # more names than these hide the nearest ones


class CliplocError(Exception):
    """Base of all errors that the input causes, not the program."""


class UsageError(CliplocError, ValueError):
    """An invalid option, prompt or name; nothing was computed."""


class ModelError(CliplocError):
    """A model that cannot be built or loaded, or a model or method that produced NaN."""


class MissingWeightsError(ModelError):
    """Weights that are not on this machine and could not be fetched; the line says where to get and put them."""


class InputError(CliplocError):
    """A picture or file that cannot be read; others may still be fine."""


class CliplocWarning(UserWarning):
    """A warning; the command line prints it in one line."""


class UnknownNameError(UsageError, KeyError):
    """A model, method or other registered name that does not exist; `known` has those that do, sorted."""

    def __init__(self, kind: str, name: str, known: Iterable[str], listed_by: str = "") -> None:
        import difflib

        self.known = known = sorted(known)
        plain = {_plain(other): other for other in known}
        near = [plain[match] for match in difflib.get_close_matches(_plain(name), plain, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        there = ", ".join(known) or "none"
        if len(known) > LISTED and listed_by:
            there = f"{len(known)}, listed by: cliploc {listed_by}"
        self.message = f"unknown {kind} {name!r}: {hint}there are {there}"
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


def _plain(name: str) -> str:
    """How a name is compared: people type vit_b_32 for ViT-B-32 and Grad-CAM for grad_cam."""
    return name.lower().replace("-", "_").replace(" ", "_")


def first_line(error: BaseException) -> str:
    """What a library's error says, for a line of ours."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
