"""Guides: second, frozen image towers whose patch features say which places of a picture are alike."""

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import ModelError, UnknownNameError, UsageError
from cliploc.support.files import user_path
from cliploc.towers._catalogue import QUERIES_KEYS, check_guide, create, guides, in_catalogue
from cliploc.towers._weights import read_checkpoint, timm_file
from cliploc.towers.tower import Backbone, Guide, Needs, fingerprint


class BackboneGuide:
    """The middle stage of one of our models as a guide."""

    def __init__(self, backbone: Backbone) -> None:
        self.name, self._backbone = backbone.name, backbone

    @property
    def weights_id(self) -> str:
        """The id of the model's weights."""
        return self._backbone.weights_id

    def features(self, pixels: Tensor) -> Tensor:
        """The features of the model's `middle_stage`; see `cliploc.towers.tower.Guide.features`."""
        stage = self._backbone.middle_stage
        images = self._backbone.normalize(_sized(pixels, self._backbone.stride))
        return self._backbone.trace(images, Needs(features=(stage,))).features[stage].float()


class TimmGuide:
    """The last feature map of a tower of timm: a ViT's patch tokens after its last norm.

    Or the queries plus keys of a ViT's last block, as CorrCLIP takes them of DINO.
    """

    def __init__(self, name: str, module: Any, device: str, *, queries_keys: bool) -> None:
        self.name, self._device = name, torch.device(device)
        self.weights_id = fingerprint(module).hex()
        self._module: Any = module.eval().requires_grad_(False).to(self._device)
        config: dict[str, Any] = self._module.pretrained_cfg
        self._mean, self._std = (
            torch.tensor(config[key], device=self._device).view(1, 3, 1, 1) for key in ("mean", "std")
        )
        self._stride = int(self._module.feature_info[-1]["reduction"])
        self._last: Any = None  # the block whose queries and keys are read
        if queries_keys:
            if not hasattr(module, "blocks") or getattr(module.blocks[-1].attn, "qkv", None) is None:
                raise UsageError(f"{name} has no queries and keys to read: leave {QUERIES_KEYS} out")
            self._before, self._last = len(module.blocks) - 2, module.blocks[-1]
            self.name = QUERIES_KEYS + name
            self.weights_id = hashlib.sha256(f"{self.weights_id} queries and keys".encode()).hexdigest()

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """See `cliploc.towers.tower.Guide.features`."""
        images = (_sized(pixels.to(self._device), self._stride) - self._mean) / self._std
        which = {"indices": 1, "norm": True} if self._last is None else {"indices": [self._before], "norm": False}
        layout = {"output_fmt": "NCHW", "intermediates_only": True}
        read: Tensor = self._module.forward_intermediates(images, **which, **layout)[-1]  # [B, d, h, w]
        if self._last is not None:
            q, k, _ = self._last.attn.qkv(self._last.norm1(read.movedim(1, 3))).chunk(3, dim=3)
            read = (q + k).movedim(3, 1)
        return read.float()


def _sized(pixels: Tensor, stride: int) -> Tensor:
    """Pixels `[B, 3, H, W]` resized so that both sides are the nearest multiples of the stride."""
    height, width = (max(1, round(side / stride)) * stride for side in pixels.shape[-2:])
    if (height, width) == tuple(pixels.shape[-2:]):
        return pixels
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)


def create_guide(spec: str, device: str = "cpu") -> Guide:
    """Builds a frozen float32 guide: a name of `guides`, a catalogue model, or a tower of timm, "NAME@WEIGHTS"."""
    check_guide(spec)
    name, _, weights = spec.removeprefix(QUERIES_KEYS).partition("@")
    queries_keys, listed = spec.startswith(QUERIES_KEYS), name in guides.names()
    if not listed and in_catalogue(name):
        if queries_keys:
            raise UsageError(f"expected a tower of timm after {QUERIES_KEYS}, got {name}: use qk:dino-b8")
        return BackboneGuide(create(name, weights or None, device))
    timm_name = guides.get(name).timm if listed else name
    import timm

    try:
        published = timm.get_pretrained_cfg(timm_name)
    except RuntimeError:  # timm's answer to weights that the tower does not have
        tags = timm.list_models(f"{timm_name.partition('.')[0]}.*", include_tags=True)
        raise UnknownNameError("guide", name, tags) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: Any
        try:  # for any input size, if the tower supports that
            module = timm.create_model(timm_name, pretrained=False, num_classes=0, dynamic_img_size=True)
        except TypeError:  # a tower that has no positions to resize
            module = timm.create_model(timm_name, pretrained=False, num_classes=0)
    try:
        _ = module.feature_info[-1]["reduction"], module.forward_intermediates
    except (AttributeError, KeyError, IndexError):
        raise UsageError(f"{name} of timm has no feature maps: choose another guide, such as dinov2-s") from None
    if weights == "random":
        return TimmGuide(name, module, device, queries_keys=queries_keys)
    repository = "" if published is None else published.hf_hub_id or ""
    checkpoint = read_checkpoint(user_path(weights) if weights else timm_file(name, repository))
    try:
        missing = module.load_state_dict(checkpoint.tensors, strict=False).missing_keys
    except RuntimeError:  # other shapes
        missing = ["tensors of these shapes"]
    if missing:
        raise ModelError(
            f"{checkpoint.path} does not hold the weights of the guide {name}, as it lacks {missing[0]}: give the file "
            f"of https://huggingface.co/{repository or 'timm'} after {name}@"
        )
    return TimmGuide(name, module, device, queries_keys=queries_keys)
