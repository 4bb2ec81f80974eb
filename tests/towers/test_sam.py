"""SAM and SAM 2 with random weights: that prompts, shapes and files reach transformers and come back."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from cliploc import Localizer
from cliploc.errors import MissingWeightsError, ModelError, UsageError
from cliploc.images.rle import decode
from cliploc.localization import Localization
from cliploc.methods import Context
from cliploc.towers.sam import SamMasks, SamRegions
from cliploc.values import Boxes
from tests.commands import CAT, document_of, process, refused
from tests.test_localizer import photo
from tests.tiny import give_function, tower
from tests.tolerances import assert_same_choice

transformers: Any = pytest.importorskip("transformers", reason="pip install 'cliploc[sam]'")
DECODER = {"hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_depth": 2}
DECODER["iou_head_hidden_dim"] = 16
PROMPTS = {"hidden_size": 16, "mask_input_channels": 4}


def sam() -> tuple[Any, Any]:
    vision = transformers.SamVisionConfig(
        hidden_size=16, output_channels=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=8,
        mlp_dim=32, window_size=0, global_attn_indexes=[0], num_pos_feats=8,
    )  # fmt: skip
    config = transformers.SamConfig(
        vision_config=vision,
        prompt_encoder_config=transformers.SamPromptEncoderConfig(image_size=64, patch_size=8, **PROMPTS),
        mask_decoder_config=transformers.SamMaskDecoderConfig(**DECODER),
    )
    square, small = {"height": 64, "width": 64}, {"height": 16, "width": 16}
    images = transformers.SamImageProcessor(
        size={"longest_edge": 64}, pad_size=square, mask_size={"longest_edge": 16}, mask_pad_size=small
    )
    return transformers.SamModel(config), transformers.SamProcessor(images)


def sam2() -> tuple[Any, Any]:
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2], window_size_per_stage=[8, 8, 8, 8], global_attention_blocks=[3],
        image_size=[128, 128], window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=16,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    )  # fmt: skip
    config = transformers.Sam2Config(
        vision_config=vision,
        prompt_encoder_config=transformers.Sam2PromptEncoderConfig(image_size=128, patch_size=16, **PROMPTS),
        mask_decoder_config=transformers.Sam2MaskDecoderConfig(**DECODER),
    )
    images = transformers.Sam2ImageProcessor(size={"height": 128, "width": 128}, mask_size={"height": 32, "width": 32})
    return transformers.Sam2Model(config), transformers.Sam2Processor(images)


@pytest.fixture(scope="module", params=[sam, sam2], ids=["sam", "sam2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = request.param()
    path = tmp_path_factory.mktemp("sam")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def found() -> Localization:
    def method(ctx: Context) -> Tensor:
        heat = torch.zeros(len(ctx.text), ctx.text.shape[1], *ctx.trace.grid)
        heat[:, 0, 1, 5], heat[:, 0, 6, 1], heat[:, 1, 4:, 3:6] = 1, 0.9, 1
        return heat

    localizer = Localizer(tower("gap_cnn", (8, 8)), method="cam", threshold=0.3, min_presence=0)
    give_function(localizer, method)
    result = localizer(photo((96, 64), red=[36, 16, 60, 32], blue=[4, 40, 28, 60]), ["red", "blue"])
    assert result.boxes.label.tolist() == [0, 0, 1]
    return result


def test_every_box_gets_the_mask_that_it_gets_alone(folder: Path, found: Localization) -> None:
    sam, boxes = SamMasks(folder), found.boxes
    masks = sam(found)
    assert masks.dtype == bool
    assert masks.shape == (len(found.boxes.xyxy), 64, 96)
    assert masks.any(), "all masks are empty: nothing is compared below"
    for place, mask in enumerate(masks):
        alone = Boxes(boxes.xyxy[[place]], boxes.score[[place]], boxes.label[[place]], boxes.names)
        assert_same_choice(sam(replace(found, boxes=alone))[0], mask)


def test_the_model_sees_what_transformers_gets(folder: Path, found: Localization) -> None:
    """Box for box what its own classes say, with the processor's own call."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForMaskGeneration.from_pretrained(folder).eval()
    inputs = processor(images=found.image, input_boxes=[found.boxes.xyxy.tolist()], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs, multimask_output=False).pred_masks
    sizes = [inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
    expected = processor.post_process_masks(logits, *sizes)[0][:, 0].numpy()
    assert_same_choice(SamMasks(folder)(found), expected)


def test_code_in_a_folder_is_not_run_and_nothing_is_prompted(tmp_path: Path) -> None:
    """transformers asks "run the custom code? [y/N]", and would take the y on stdin for consent."""
    maps = {"AutoConfig": "evil.C", "AutoModelForMaskGeneration": "evil.M"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": maps}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\nclass M: pass\n")
    words = ("localize", CAT, "-p", "cat", "--min-presence", "0", "--masks-by", f"sam:{tmp_path}", "--json")
    reported = process(*words, input="y\n" * 9)
    assert (reported.returncode, reported.stdout, reported.stderr.count("\n")) == (2, "", 1), reported.stderr
    assert reported.stderr.startswith(f"cliploc: SAM cannot be loaded from {tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_no_box_no_mask(folder: Path) -> None:
    nothing = Localizer()(photo((48, 64)), ["cat"])
    assert len(nothing.boxes.xyxy) == 0
    assert SamMasks(folder)(nothing).shape == (0, 64, 48)


def test_what_cannot_be_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "expected SAM's folder or a repository as ORG/NAME, got '/nowhere/sam': check the path"
    assert refused("localize", CAT, "-p", "cat", "--json", "--masks-by", "sam:/nowhere/sam") == f"cliploc: {message}\n"
    with pytest.raises(ModelError, match=r"^SAM cannot be loaded from .*: give a folder with config.json") as error:
        SamMasks(tmp_path)
    assert "\n" not in str(error.value)
    other = shutil.copytree(folder, tmp_path / "half") / "model.safetensors"
    complete, content = load_file(other), other.read_bytes()
    save_file(dict(list(complete.items())[:-2]), other, {"format": "pt"})
    with pytest.raises(ModelError, match=r"^SAM cannot be loaded from .*half \(the weights lack 2 tensors, such as "):
        SamMasks(other.parent)
    for damaged in (b"", content[:-1]):
        other.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"^SAM cannot be loaded from .*half \(Error while deserializing header"):
            SamMasks(other.parent)
    with pytest.raises(MissingWeightsError, match=r"^SAM cannot be loaded from facebook/no-sam"):
        SamMasks("facebook/no-sam")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"^SAM needs transformers: pip install 'cliploc\[sam"):
        SamMasks(folder)


def test_the_command_line_draws_masks_by_sam(folder: Path, tmp_path: Path) -> None:
    requested = ("localize", CAT, "-p", "cat", "--recipe", "fast", "--out", tmp_path)
    document = document_of(*requested, "--masks-by", f"sam:{folder}")
    [box] = document["pictures"][0]["names"][0]["boxes"]
    plain = Localizer("mini", recipe="fast")(CAT, ["cat"])
    assert_same_choice(decode(box["mask"]), SamMasks(folder)(plain)[0])
    assert {"cat_masks.jpg", "cat_labels.png"} <= {path.name for path in tmp_path.iterdir()}


def test_a_run_is_identified_by_the_weights_of_sam_and_not_by_its_folder(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "copy")
    one, same = (Localizer("mini", masks_by=f"sam:{path}").describe() for path in (folder, other))
    assert one == same
    weights = load_file(other / "model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    assert Localizer("mini", masks_by=f"sam:{other}").describe() != one


def test_regions_are_the_masks_of_transformers_with_smaller_ones_on_top(folder: Path) -> None:
    picture = Image.fromarray(photo((96, 64), red=[36, 16, 60, 32], blue=[4, 40, 28, 60]))
    regions = SamRegions(folder, quality=-9, stability=0, points=3)(picture)
    model = transformers.AutoModelForMaskGeneration.from_pretrained(folder)
    images = transformers.AutoProcessor.from_pretrained(folder).image_processor
    generate = transformers.pipeline("mask-generation", model=model, image_processor=images, device="cpu")
    masks = [np.asarray(one) for one in generate(
        picture, pred_iou_thresh=-9, stability_score_thresh=0, points_per_crop=3
    )["masks"]]  # fmt: skip
    assert masks
    smallest = np.full((64, 96), 64 * 96 + 1)
    for mask in masks:
        smallest[mask] = np.minimum(smallest[mask], mask.sum())
    assert ((regions < 0) == (smallest > 64 * 96)).all()
    for region in range(regions.max() + 1):
        inside = regions == region
        assert not inside.any() or len(np.unique(smallest[inside])) == 1


def test_segment_takes_the_regions_of_sam(folder: Path) -> None:
    """Random weights are sure of no mask: every pixel keeps its label."""
    requested = ("segment", CAT, "-p", "cat", "-p", "sofa", "--window", "0", "--template", "name-only")
    plain, by_sam = (document_of(*requested, *more) for more in ([], ["--regions", f"sam:{folder}"]))
    assert by_sam["pictures"][0]["names"] == plain["pictures"][0]["names"]
    assert by_sam["settings"]["protocol"]["regions"] == f"sam:{folder}"
