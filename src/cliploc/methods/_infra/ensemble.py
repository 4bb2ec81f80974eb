"""Ensembles of methods: "gem+legrad" is a `Method` whose map is the mean of both maps, from one forward pass."""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

from torch import Tensor

from cliploc.errors import ModelError, UsageError
from cliploc.methods import Context, Method, Needs, methods, resolve_options
from cliploc.methods._infra.maps import min_max, on_finest
from cliploc.methods._infra.method import parse_spec
from cliploc.options import parse_share


def find(spec: str) -> Method:
    """A method, or an ensemble by "+": towers of all, mean threshold, the mean of the maps scaled to 0–1."""
    members = tuple(_with_options(methods.get(name), texts) for name, texts in parse_spec(spec))
    names = [member.name for member in members]
    if len(members) == 1:
        return members[0]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"expected each method of an ensemble once, got {name!r} {names.count(name)} times: name it once"
            )

    def needs(**options: Any) -> Needs:
        return reduce(or_, (m.needs(**_options_of(m, options)) for m in members))

    def ensemble(ctx: Context, **options: Any) -> Tensor:
        raw = [raw_maps(m, ctx, _options_of(m, options)) for m in members]  # each [B, P, h, w] of its own grid
        maps = [min_max(r.relu() if m.relu else r) for m, r in zip(members, raw, strict=True)]
        return on_finest(maps).mean(dim=0)

    facts: dict[str, Any] = {"members": members, "threshold": sum(m.threshold for m in members) / len(members)}
    for name, joint in (("title", " + "), ("paper", "; ")):
        facts[name] = joint.join(getattr(m, name) for m in members)
    for name in ("towers", "poolings"):
        facts[name] = frozenset.intersection(*(getattr(m, name) for m in members))
    for name in ("prompts_interact", "reads_text", "reads_picture", "threshold_preset"):
        facts[name] = any(getattr(m, name) for m in members)
    for name in ("options", "preset"):
        facts[name] = {f"{m.name}.{option}": value for m in members for option, value in getattr(m, name).items()}
    return Method("+".join(names), ensemble, family="ensemble", needs=needs, **facts)


def _with_options(method: Method, texts: Mapping[str, str]) -> Method:
    """A method with the options that stand in its name; `threshold` is the τ of its boxes."""
    if not texts:
        return method
    options, tau = dict(texts), method.threshold
    if text := options.pop("threshold", None):
        tau = parse_share(text, f"expected the threshold of {method.name} from 0 to 1")
    return replace(
        method,
        title=f"{method.title} ({', '.join(f'{key}={value}' for key, value in texts.items())})",
        threshold=tau,
        threshold_preset=text is not None,
        preset=resolve_options(method, options),
    )


def raw_maps(method: Method, ctx: Context, options: Mapping[str, Any]) -> Tensor:
    """The raw maps of a batch, `[B, P, h, w]` float32, as the method's function returns them."""
    maps = method.function(ctx, **options)
    wanted = tuple(ctx.text.shape[:2])
    if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[:2] != wanted:
        got = f"one of shape {list(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
        raise ModelError(
            f"expected {method.name} to return a tensor [B, P, h, w] with B = {wanted[0]} pictures and P = {wanted[1]} "
            f"names, got {got}: correct the method"
        )
    return maps.float()


def _options_of(member: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    start = f"{member.name}."
    return {key.removeprefix(start): value for key, value in options.items() if key.startswith(start)}
