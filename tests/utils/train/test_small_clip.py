"""A small CLIP does what a large one does as far as it fits, is taught the rest, and the packaged teacher is read as it was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.tiny import build_tiny_set
from utils.train import small_clip
from utils.train.small_clip import Flow, Lessons, inherit, main, main_directions, read_quantised, states

WIDTH, NEURONS, SIDE = 32, 64, 32


def build_clip(layers: int = 3, heads: int = 4, width: int = WIDTH) -> CLIPVisionModel:
    """Random weights, and norms that do something."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": NEURONS, "num_hidden_layers": layers, "num_attention_heads": heads}
    clip = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=8, initializer_factor=5.0)).eval()
    with torch.no_grad():
        for layer in clip.encoder.layers:
            for norm in (layer.layer_norm1, layer.layer_norm2):
                norm.weight.normal_(1, 0.3)
                norm.bias.normal_(0, 0.3)
    return clip


def noise(count: int) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_with_room_for_everything_nothing_is_lost() -> None:
    """Its states are the teacher's, turned: LayerNorm takes their mean away, which is all that a turn may drop."""
    teacher, pixels = build_clip(), noise(16)
    heir = inherit(teacher, pixels, WIDTH, NEURONS)
    basis = main_directions(Flow(teacher, pixels).states, WIDTH)
    with torch.no_grad():
        for ours, theirs in zip(states(heir, pixels), states(teacher, pixels), strict=True):
            torch.testing.assert_close(ours, theirs @ basis, rtol=1e-3, atol=1e-3)


def test_what_is_not_used_is_what_goes() -> None:
    """Neurons that stay silent, and heads that say nothing, are left out without a trace; what always says the same goes into the bias."""
    teacher, pixels = build_clip(), noise(16)
    with torch.no_grad():
        for layer in teacher.encoder.layers:
            layer.mlp.fc1.weight[::2] = 0
            layer.self_attn.out_proj.weight[:, 8:16] = 0
    heir = inherit(teacher, pixels, WIDTH, NEURONS // 2)
    basis = main_directions(Flow(teacher, pixels).states, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(states(heir, pixels)[-1], states(teacher, pixels)[-1] @ basis, rtol=1e-3, atol=1e-3)
    narrow = inherit(teacher, pixels, 24, NEURONS)  # three heads of four: the silent one is not among them
    for layer in narrow.encoder.layers:
        assert layer.self_attn.out_proj.weight.unflatten(1, (3, 8)).abs().amax(dim=(0, 2)).min() > 0


def test_directions_have_no_mean_and_main_ones_come_in() -> None:
    flow = torch.randn(2, 500, WIDTH, generator=torch.Generator().manual_seed(0))
    flow[..., 0] *= 20
    basis = main_directions(flow, 8)
    assert basis.shape == (WIDTH, 8)
    torch.testing.assert_close((flow @ basis).mean(dim=-1), torch.zeros(2, 500), atol=1e-4, rtol=0)
    torch.testing.assert_close(basis.T @ basis, torch.eye(8) - 1 / 8, atol=1e-5, rtol=0)
    assert basis[0].norm() > 0.95


def test_the_command_writes_a_clip_that_has_learned(tmp_path: Path) -> None:
    """From a folder, two layers of three; the error falls from where inheritance left them."""
    build_clip().save_pretrained(tmp_path / "teacher")
    data = build_tiny_set(tmp_path / "data")
    argv = ["--dataset_dir", str(data), "--teacher", str(tmp_path / "teacher"), "--layers", "2", "--width", "16", "--neurons", "32"]
    errors: list[float] = []
    pretrain = small_clip.pretrain
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_clip, "pretrain", lambda *args: errors.extend(pretrain(*args)) or errors)
        assert (
            main([*argv, "--steps", "200", "--batch_size", "9", "--workers", "0", "--precision", "fp32", "--pictures", "8", "--out", str(tmp_path / "small")])
            == 0
        )
    assert np.mean(errors[-10:]) < 0.6 * np.mean(errors[:10])
    small = CLIPVisionModel.from_pretrained(tmp_path / "small")
    config = small.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads) == (2, 16, 32, 2)
    assert states(small, noise(1))[-1].isfinite().all()


def test_lessons_show_both_sides(tmp_path: Path) -> None:
    """Every other pass mirrors a picture, and what was seen in each of its patches along with it."""
    lessons = Lessons(noise(3).half(), torch.arange(3 * 4 * 4 * 2).view(3, 4, 4, 2).half())
    batches = lessons.batches(3, seed=0)
    rows = torch.stack([torch.cat([pixels.flatten(1), patches.flatten(1)], dim=1) for (pixels, patches), _ in (next(batches) for _ in range(2))])
    straight = torch.cat([part.flatten(1) for part in lessons], dim=1).float()
    mirrored = torch.cat([lessons.pixels.flip(3).flatten(1), lessons.patches.flip(2).flatten(1)], dim=1).float()
    known = [tuple(row.tolist()) for row in (*straight, *mirrored)]
    assert sorted(known.index(tuple(row.tolist())) for row in rows.flatten(0, 1)) == list(range(6))


def quantised(clip: CLIPVisionModel) -> bytes:
    """An ONNX model that holds what `quantize_dynamic` would of it: matrices as uint8 with a scale and a zero point, all else as it is."""
    onnx = pytest.importorskip("onnx")
    helper, arrays = onnx.helper, onnx.numpy_helper
    stored, nodes = [], []
    matrices = {f"{name}.weight" for name, module in clip.named_modules() if isinstance(module, nn.Linear)}
    for i, (name, tensor) in enumerate(clip.state_dict().items()):
        if name in matrices:
            low, scale = tensor.min(), (tensor.max() - tensor.min()) / 255
            whole = ((tensor.T - low) / scale).round().to(torch.uint8)
            base = f"onnx::MatMul_{i}"
            stored += [arrays.from_array(whole.numpy(), f"{base}_quantized"), arrays.from_array(scale.numpy(), f"{base}_scale")]
            stored.append(arrays.from_array((-low / scale).round().to(torch.uint8).numpy(), f"{base}_zero_point"))
            path = "/".join(["", "vision_model", *name.removesuffix(".weight").replace("layers.", "layers#").replace(".", "/").replace("#", ".").split("/")])
            nodes.append(helper.make_node("MatMulInteger", ["x", f"{base}_quantized", "zero", f"{base}_zero_point"], [f"{base}_out"], f"{path}/MatMul_quant"))
        else:
            stored.append(arrays.from_array(tensor.numpy(), f"vision_model.{name}"))
    return helper.make_model(helper.make_graph(nodes, "clip", [], [], stored)).SerializeToString()


def test_the_packaged_teacher_is_read() -> None:
    clip = build_clip(heads=1, width=64)
    read = read_quantised(quantised(clip))
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "hidden_act")
    assert all(getattr(read.config, field) == getattr(clip.config, field) for field in fields)
    for name, tensor in clip.state_dict().items():
        step = (tensor.max() - tensor.min()).item() / 255
        torch.testing.assert_close(read.state_dict()[name], tensor, atol=1.01 * step if tensor.ndim == 2 else 0, rtol=0)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--width", "20"], "--width is 20: expected a multiple of a head's 8, at most the teacher's 32"),
        (["--width", "64"], "--width is 64: expected a multiple of a head's 8, at most the teacher's 32"),
        (["--width", "16", "--neurons", "65"], "--neurons is 65: expected 1 to the teacher's 64"),
        (["--layers", "4"], "--layers is 4: expected 1 to the teacher's 3"),
        (["--teacher", "nowhere/at-all"], "--teacher is nowhere/at-all: expected a folder with a CLIP"),
    ],
)
def test_bad_sizes_are_refused(flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_clip().save_pretrained(tmp_path / "teacher")
    argv = ["--dataset_dir", str(build_tiny_set(tmp_path / "data")), "--teacher", str(tmp_path / "teacher"), "--layers", "2", "--out", str(tmp_path / "small")]
    with pytest.raises(SystemExit) as failure:
        main([*argv, *flags])
    assert failure.value.code == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_without_the_package_or_its_reader_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(_: str) -> Path:
        raise ModuleNotFoundError("No module named 'onnx'")

    monkeypatch.setattr(small_clip, "fetch", missing)
    with pytest.raises(SystemExit) as failure:
        main(["--dataset_dir", str(tmp_path), "--out", str(tmp_path / "small")])
    assert failure.value.code == 1
    assert "pip install -r requirements-dev.txt" in capsys.readouterr().err
