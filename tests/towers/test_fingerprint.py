"""What tells models and text towers apart: what is in them, not the files that they are from."""

import torch
from safetensors.torch import save_file

from cliploc.towers import create
from tests.commands import CAT, cliploc_
from tests.towers.small_clip import save_folder, small_clip


def model(folder, seed, form, quick_gelu=False):
    """A folder of open_clip, whose image tower is drawn by the seed, and whose text tower is always the same."""
    save_folder(folder, quick_gelu=quick_gelu)
    image, text = small_clip(seed=seed).state_dict(), small_clip(seed=5).state_dict()
    state = {name: (image if name.startswith("visual.") else text)[name].clone() for name in text}
    if form == "pt":
        torch.save(state, folder / "open_clip_model.pt")
    else:
        save_file(state, folder / "open_clip_model.safetensors")
    return create(f"local-dir:{folder}")


def test_a_text_tower_is_the_same_in_files_of_other_forms_and_beside_other_image_towers(tmp_path):
    one, same, tuned = (model(tmp_path / n, *how) for n, how in (("a", (5, "pt")), ("b", (5, "st")), ("c", (6, "st"))))
    assert one.weights_id == same.weights_id != tuned.weights_id
    assert one.text_id == same.text_id == tuned.text_id
    quick = model(tmp_path / "d", 5, "st", quick_gelu=True)  # the same tensors
    assert len({quick.weights_id, quick.text_id, one.weights_id, one.text_id}) == 4


def test_comparison_names_are_embedded_and_announced_once_for_a_text_tower(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPLOC_CACHE", str(tmp_path / "cache"))
    announced = []
    for folder, seed, form in (("a", 5, "pt"), ("b", 6, "st")):
        model(tmp_path / folder, seed, form)
        ran = cliploc_("localize", CAT, "-p", "cat", "--model", f"local-dir:{tmp_path / folder}", "--json")
        assert ran.code == 0, ran.err
        announced.append("comparison names, once for this text tower" in ran.err)
    assert announced == [True, False]
