"""Where benches keep what they measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cliploc.towers._layers import native_bf16


def keep(out: Path | None, name: str, document: dict[str, Any], markdown: str) -> None:
    """Writes `name`.json and `name`.md into a folder; None to write nothing."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (out / f"{name}.md").write_text(markdown, encoding="utf-8")


def headed(title: str, about: str, machine: dict[str, Any], table: Sequence[str]) -> str:
    """A page: what it is, on which machine, and its table."""
    return "\n".join([f"# {title}", "", about, "", made_on(machine), "", *table, ""])


def precisions() -> tuple[str, ...]:
    """What is measured on this processor: where it lacks bfloat16, that is emulated, very slowly."""
    return ("fp32", "bf16") if native_bf16(torch.device("cpu")) else ("fp32",)


def made_on(machine: dict[str, Any]) -> str:
    """A line on the machine, its load, and the versions."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    load = machine["load"] and machine["load"][0]
    return (
        f"{machine['processor']}, {machine['cpus']} CPUs, {machine['threads']} threads, load at the start {load}; "
        f"Python {machine['python']}, {versions}."
    )
