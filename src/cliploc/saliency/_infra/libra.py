"""LibraGrad, the option `libra` of every gradient method on ViTs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cliploc.method import Context
from cliploc.tower import Needs


def with_libra(
    function: Callable[..., Any], needs: Callable[..., Needs]
) -> tuple[Callable[..., Any], Callable[..., Needs]]:
    """Function and needs with the option `libra`: LibraGrad's gradients (Mehri, Baghshah & Pilehvar 2025, CVPR)."""

    @functools.wraps(function)
    def balanced(ctx: Context, *args: Any, libra: bool = False, **options: Any) -> Any:
        if not libra:
            return function(ctx, *args, **options)
        from cliploc.saliency._infra.backward import LIBRA, Backward  # here: the registry is read without torch

        with Backward(LIBRA):
            # The graphs that the trace holds were recorded without the rules: blocks are run again.
            return function(replace(ctx, trace=replace(ctx.trace, ends={})), *args, **options)

    def balanced_needs(libra: bool = False, **options: Any) -> Needs:
        own = needs(**options)
        if not libra:
            return own
        blocks = {*own.features, *own.ends, *(() if own.tokens == "all" else own.tokens)} or {-1}  # which no CNN has
        return replace(own, ends=(), tokens="all" if own.tokens == "all" else tuple(sorted(blocks)))

    balanced.__annotations__ = {**function.__annotations__, "libra": bool}
    return balanced, balanced_needs
