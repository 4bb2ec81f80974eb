"""Folds batch norms into the convolutions before them: each saves one pass over memory, the function is the same."""

from __future__ import annotations

import copy
import itertools
import re
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Module = TypeVar("Module", bound=nn.Module)
_CONVOLUTION = re.compile(r"(.*)conv(.*)")


@torch.no_grad()
def fold_batch_norms(module: Module, *, in_place: bool = False) -> Module:
    """A copy in eval mode whose batch norms are part of their convolutions.

    Two patterns of ResNets are folded: neighbours in an `nn.Sequential`, and siblings named `conv…` and `bn…` with the
    same rest of the name, which by convention run one after the other. All other batch norms stay as they are.

    Args:
        in_place: whether the module itself is folded instead of a copy.

    Returns:
        A module that gives the same outputs as `module.eval()` up to rounding.

    Example:
        >>> block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
        >>> [type(part).__name__ for part in fold_batch_norms(block)]
        ['Conv2d', 'Identity']
    """
    folded = (module if in_place else copy.deepcopy(module)).eval()
    for parent in folded.modules():
        names = [name for name, _ in parent.named_children()]
        if isinstance(parent, nn.Sequential):
            pairs = list(itertools.pairwise(names))
        else:
            pairs = [(name, _CONVOLUTION.sub(r"\1bn\2", name)) for name in names if _CONVOLUTION.fullmatch(name)]
        for convolution_name, norm_name in pairs:
            convolution, norm = getattr(parent, convolution_name), getattr(parent, norm_name, None)
            # Exactly these classes: a subclass can do more, as timm's batch norms with an activation.
            if type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.track_running_stats:
                setattr(parent, convolution_name, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, norm_name, nn.Identity())
    return folded
