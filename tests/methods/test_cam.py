"""CAM against its equation, and against torchcam."""

import pytest
import torch
from torch import nn
from torchcam.methods import CAM

from tests.methods.peers import assert_same_maps, min_max, mini_scene, tiny_scene


class Linear(nn.Module):
    """A GAP tower and prompts as CAM's paper has them: stages, global average pool, one linear layer."""

    def __init__(self, scene: object) -> None:
        super().__init__()
        self.stages = scene.backbone.stages
        self.classifier = nn.Linear(scene.text.shape[1], len(scene.text), bias=False)
        self.classifier.weight.data = scene.text.clone()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images
        for stage in self.stages:
            x = stage(x)
        return self.classifier(x.mean(dim=(-2, -1)))


def test_the_mean_of_a_map_is_the_similarity_before_normalisation() -> None:
    """Zhou 2016: for a GAP tower the map is exact. A mean feature μ that is not zero takes part."""
    scene = tiny_scene("gap_cnn")
    scene.backbone.pool_layer.mean_feature.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(0))
    features, _ = scene.features_and_gradients()
    mu = scene.backbone.pool_layer.mean_feature
    maps = scene.ours("cam")
    for b, image in enumerate(features):
        embedding = image.mean(dim=(1, 2)) - mu
        for p, direction in enumerate(scene.text):
            for y in range(image.shape[1]):
                for x in range(image.shape[2]):
                    assert maps[b, p, y, x] == pytest.approx(float((image[:, y, x] - mu) @ direction), abs=1e-5)
            assert maps[b, p].mean() == pytest.approx(float(embedding @ direction), abs=1e-5)


def test_attention_pool_reads_the_value_path() -> None:
    """Each location's position-encoded features through v_proj and c_proj, dotted with the text."""
    scene = tiny_scene("attention_pool_cnn")
    features, _ = scene.features_and_gradients()
    pool = scene.backbone.pool_layer
    maps = scene.ours("cam")
    width = features.shape[-1]
    for b, image in enumerate(features):
        for y in range(image.shape[1]):
            for x in range(width):
                token = image[:, y, x] + pool.positional_embedding[1 + y * width + x]
                value = pool.v_proj.weight @ token + pool.v_proj.bias
                reading = pool.c_proj.weight @ value + pool.c_proj.bias
                torch.testing.assert_close(maps[b, :, y, x], scene.text @ reading, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: tiny_scene("gap_cnn"), mini_scene], ids=["tiny", "mini"])
def test_torchcam_agrees(make: object) -> None:
    """torchcam reads A where we read A − μ: a constant, which min–max takes away. Without ReLU on either side."""
    scene = make()
    model = Linear(scene)
    theirs = []
    with CAM(model, model.stages[-1], fc_layer=model.classifier) as extractor:
        for prompt in range(len(scene.text)):
            scores = model(scene.images)
            theirs.append(extractor(prompt, scores)[0].detach())
    assert_same_maps(min_max(scene.ours("cam")), torch.stack(theirs, dim=1), tolerance=1e-4)
