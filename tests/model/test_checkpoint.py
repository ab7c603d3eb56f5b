"""Loading is strict and says what is wrong; saving needs no flag to load again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from model import checkpoint
from model.checkpoint import canonical, load_for_training, load_pretrained, read_tensors, save_pretrained
from model.lora import add_lora, merge_lora, set_trainable
from tests.tiny import SENTENCES, build_tiny_lisa
from utils.train.scratch import build_base


@pytest.fixture(scope="module")
def lisa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_lisa(tmp_path_factory.mktemp("lisa"))


@pytest.fixture(scope="module")
def sida(lisa: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = load_for_training(lisa, "sida")
    return save_pretrained(model, tokenizer, tmp_path_factory.mktemp("sida"))


def copy(source: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(source, target / "copy"))


def rewrite(folder: Path, change: object) -> None:
    """Replace the folder's weights by `change(state)`, as a .bin in two shards with an index."""
    state = change(dict(read_tensors(folder)))
    for file in folder.glob("model*.safetensors"):
        file.unlink()
    names, half = sorted(state), len(state) // 2
    shards = {"pytorch_model-00001-of-00002.bin": names[:half], "pytorch_model-00002-of-00002.bin": names[half:]}
    for file, part in shards.items():
        torch.save({name: state[name] for name in part}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {name: file for file, part in shards.items() for name in part}}))


@pytest.mark.parametrize(("saved", "name"), [
    ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", "model.layers.0.self_attn.q_proj.weight"),
    ("base_model.model.model.vision_tower.vision_tower.vision_model.embeddings.class_embedding", "model.vision_tower.embeddings.class_embedding"),
    ("module.lm_head.weight", "lm_head.weight"),
])
def test_canonical(saved: str, name: str) -> None:
    assert canonical(saved) == name


def test_round_trip_needs_no_flag(sida: Path) -> None:
    first, tokenizer = load_pretrained(sida)
    again, same = load_pretrained(sida)
    assert tokenizer.added == same.added
    assert (first.config.image_size, first.config.stage, first.config.conv_type) == (256, "sida", "llava_v1")
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert {"config.json", "generation_config.json", "tokenizer.model", "args.json", "model.safetensors"} <= {p.name for p in sida.iterdir()}
    assert (sida / "vision_tower" / "model.safetensors").is_file()


def test_sharded_bin_with_old_buffers(sida: Path, tmp_path: Path) -> None:
    folder = copy(sida, tmp_path)
    rewrite(folder, lambda state: state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    model, _ = load_pretrained(folder)
    want, _ = load_pretrained(sida)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), want.state_dict().values(), strict=True))


def test_pickles_run_nothing(sida: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (exec, ("raise SystemExit('executed')",))

    folder = copy(sida, tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.?only"):
        load_pretrained(folder)


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: {k: v for k, v in s.items() if k != "model.norm.weight"}, r"missing: 1, e\.g\. model\.norm\.weight"),
    (lambda s: s | {"model.surprise": torch.zeros(1)}, r"unexpected: 1, e\.g\. model\.surprise"),
    (lambda s: s | {"model.sida_fc1.bias": torch.zeros(3)}, r"misshapen: 1, e\.g\. model\.sida_fc1\.bias \(3,\) for \(256,\)"),
    (lambda s: {k: v for k, v in s.items() if "cls_head" not in k}, r"missing: 4, e\.g\. model\.cls_head"),
])
def test_strict(sida: Path, tmp_path: Path, change: object, message: str) -> None:
    folder = copy(sida, tmp_path)
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_another_size(sida: Path) -> None:
    with pytest.raises(ValueError, match=r"another size or stage\?\s+misshapen: 3"):
        load_pretrained(sida, image_size=512)


def test_lisa_keeps_its_heads_and_new_ones_start_anew(lisa: Path) -> None:
    stored = dict(read_tensors(lisa))
    torch.manual_seed(1)
    model, tokenizer = load_for_training(lisa, "sida")
    own = model.state_dict()
    assert torch.equal(own["model.text_hidden_fcs.0.0.weight"], stored["model.text_hidden_fcs.0.0.weight"])
    assert own["model.cls_head.0.0.weight"].std() > 0
    rows = stored["model.embed_tokens.weight"]
    assert tokenizer.id_of("[CLS]") == len(rows)
    torch.testing.assert_close(own["model.embed_tokens.weight"][-1], rows.mean(0))


def test_reference_initialises_all_heads_again(lisa: Path) -> None:
    stored = dict(read_tensors(lisa))
    model, _ = load_for_training(lisa, "sida", vision_pretrained=str(lisa / "sam.pth"), reinit_heads=True)
    assert not torch.equal(model.state_dict()["model.text_hidden_fcs.0.0.weight"], stored["model.text_hidden_fcs.0.0.weight"])
    with pytest.raises(ValueError, match="--vision_pretrained"):
        load_for_training(lisa, "sida", reinit_heads=True)


def test_sam_comes_from_its_file_when_the_base_has_none(lisa: Path, tmp_path: Path) -> None:
    folder = copy(lisa, tmp_path)
    rewrite(folder, lambda state: {k: v for k, v in state.items() if "visual_model" not in k})
    with pytest.raises(ValueError, match="no SAM weights.*--vision_pretrained"):
        load_for_training(folder, "sida")
    with pytest.raises(FileNotFoundError, match=r"no SAM weights at .*nowhere\.pth"):
        load_for_training(folder, "sida", vision_pretrained="nowhere.pth")
    model, _ = load_for_training(folder, "sida", vision_pretrained=str(lisa / "sam.pth"))
    want = dict(read_tensors(lisa))["model.visual_model.image_encoder.pos_embed"]
    assert torch.equal(model.model.visual_model.image_encoder.pos_embed, want)


def test_description_adds_end(sida: Path, tmp_path: Path) -> None:
    model, tokenizer = load_for_training(sida, "description")
    assert tokenizer.id_of("[END]") == model.lm_head.weight.shape[0] - 1
    save_pretrained(model, tokenizer, tmp_path)
    again, _ = load_pretrained(tmp_path)
    assert again.config.stage == "description"


def test_a_stage_that_the_checkpoint_names_is_its_own(sida: Path, tmp_path: Path) -> None:
    """SIDA-tiny goes on from a description checkpoint, whose [END] it keeps: it is still asked what it was taught. Where none is named, [END] tells."""
    save_pretrained(*load_for_training(sida, "description"), tmp_path / "words")
    save_pretrained(*load_for_training(tmp_path / "words", "sida"), tmp_path / "verdict")
    assert load_pretrained(tmp_path / "verdict")[0].config.stage == "sida"
    config = tmp_path / "words" / "config.json"
    fields = json.loads(config.read_text())
    assert fields.pop("stage") == "description"
    config.write_text(json.dumps(fields))
    assert load_pretrained(tmp_path / "words")[0].config.stage == "description"


def test_description_starts_from_sida(lisa: Path) -> None:
    with pytest.raises(ValueError, match=r"has no \[CLS\].*is this a SIDA checkpoint"):
        load_for_training(lisa, "description")


def test_overrides_are_checked_as_the_file_is(sida: Path) -> None:
    with pytest.raises(ValueError, match="image_size is 250: expected a multiple"):
        load_pretrained(sida, image_size=250)
    assert load_pretrained(sida, views=3)[0].config.views == 3


def test_training_starts_uncalibrated_and_upright(sida: Path, tmp_path: Path) -> None:
    shutil.copytree(sida, tmp_path / "ck")
    path = tmp_path / "ck" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"views": 4, "cls_temperature": 2.0, "calibrated_on": 900}))
    config = load_for_training(tmp_path / "ck", "description")[0].config
    assert (config.views, config.cls_temperature, config.calibrated_on) == (1, 1.0, 0)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_pretrained(tmp_path)


def test_no_tower(sida: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--vision-tower"):
        load_pretrained(sida, vision_tower="nobody/no-tower")


def test_full_disk_is_said_before_writing(sida: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_pretrained(sida)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"needs 0\.0 GB"):
        save_pretrained(model, tokenizer, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_merge_keeps_the_outputs(sida: Path) -> None:
    model, tokenizer = load_pretrained(sida)
    add_lora(model, 4, 16, 0.0, ["q_proj", "v_proj"])
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.tensor([tokenizer.encode("The image is real")])
    with torch.no_grad():
        before = model(ids).logits
        merge_lora(model)
        after = model(ids).logits
    assert not any("lora" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)


def test_trainable_families_are_whole_names(sida: Path) -> None:
    model, _ = load_pretrained(sida)
    set_trainable(model, ("attention_layer",))
    assert {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad} == {"attention_layer"}


@pytest.mark.parametrize(("r", "targets"), [(-1, ["q_proj"]), (4, [])])
def test_lora_refuses(sida: Path, r: int, targets: list[str]) -> None:
    model, _ = load_pretrained(sida)
    with pytest.raises(ValueError, match="lora_r is"):
        add_lora(model, r, 16, 0.0, targets)


def test_base_is_deterministic(tmp_path: Path) -> None:
    first, second = (build_base(tmp_path / name, SENTENCES * 4, vocab_size=420, seed=3) for name in ("a", "b"))
    a, b = dict(read_tensors(first)), dict(read_tensors(second))
    assert all(torch.equal(a[name], b[name]) for name in a)
