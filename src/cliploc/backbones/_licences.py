"""Licences of the weights that open_clip publishes, by the repository it fetches them from.

Sources are the model cards on Hugging Face, or timm's configurations of the same weights. There are two exceptions: for
OpenAI's weights, OpenAI's repository counts (timm's copies of the ViTs say Apache-2.0); for Apple's DFN weights, their
current model cards count (timm still names the former licence). Licences that neither source states are left out.
"""

from __future__ import annotations

import re

UNKNOWN = "unknown"
_LICENCES = (
    (r".*\.openai$|timm/resnet50\w*_clip\.|timm/resnet101_clip\.", "MIT"),
    (r"laion/|timm/vit_\w+\.laion400m_|timm/eva|jienengchen/ViTamin", "MIT"),
    (r"timm/ViT-.*-SigLIP|timm/PE-Core|UCSC-VLAA/ViT-.*-CLIPA", "Apache-2.0"),
    (r"timm/vit_\w+\.metaclip|visheratin/nllb", "CC-BY-NC-4.0"),
    (r"apple/(DFN|MobileCLIP)|timm/MobileCLIP2", "Apple AMLR"),
)


def licence_of(repository: str) -> str:
    """The licence of the weights in a repository, or "unknown".

    Example:
        >>> licence_of("timm/ViT-B-16-SigLIP")
        'Apache-2.0'
    """
    return next((licence for pattern, licence in _LICENCES if re.match(pattern, repository)), UNKNOWN)
