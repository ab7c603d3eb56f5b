"""One picture through the pipeline and through chat.py's real main()."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import chat
from model.checkpoint import load_for_training, load_pretrained, save_pretrained
from model.quantize import quantize
from model.types import Label
from tests.tiny import build_tiny_lisa, build_tiny_set
from utils.data.conversation import answer
from utils.infer.decode import read
from utils.infer.pipeline import SidaPipeline
from utils.infer.visualize import overlay

NOISE = {"channels": [8, 8, 8, 8], "hidden": 16}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose class head always says tampered."""
    folder = tmp_path_factory.mktemp("sida")
    model, tokenizer = load_for_training(build_tiny_lisa(folder / "base"), "sida")
    with torch.no_grad():
        model.model.cls_head[0][3].bias.copy_(torch.tensor([0.0, 0.0, 20.0]))
    return save_pretrained(model, tokenizer, folder / "ck")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_set(tmp_path_factory.mktemp("set"), 1) / "train" / "tampered" / "tampered_0.png"


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> SidaPipeline:
    return SidaPipeline.from_pretrained(checkpoint, device="cpu")


@pytest.mark.parametrize("decode", ["generate", "forced"])
def test_tampered_gets_a_mask_at_the_original_size(pipe: SidaPipeline, picture: Path, decode: str) -> None:
    result = pipe(picture, decode=decode, max_new_tokens=8)
    assert result.label is Label.TAMPERED
    assert sum(result.probs.values()) == pytest.approx(1)
    assert result.mask.shape == cv2.imread(str(picture)).shape[:2]
    assert result.mask.dtype == bool


@pytest.mark.parametrize("label", Label)
def test_where_experts_decide_too_the_words_are_theirs(tmp_path: Path, picture: Path, label: Label) -> None:
    model, tokenizer = load_for_training(build_tiny_lisa(tmp_path / "lisa", noise=NOISE), "sida")
    with torch.no_grad():
        model.model.noise.head.bias[label] += 50
    pipe = SidaPipeline(model.eval(), tokenizer, "cpu", torch.float32)
    result = pipe(picture, max_new_tokens=8)
    assert result.label is label
    assert result.text.startswith(answer(label, "sida"))
    assert not pipe(picture, decode="generate", max_new_tokens=8).text.startswith("[CLS] The image")  # a random model's own words


def test_path_and_array_are_the_same(pipe: SidaPipeline, picture: Path) -> None:
    rgb = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)
    a, b = pipe(picture, max_new_tokens=4), pipe(rgb, max_new_tokens=4)
    assert a.probs == b.probs
    assert a.text == b.text


def test_cached_answer_equals_the_uncached_one(pipe: SidaPipeline, picture: Path) -> None:
    """Greedy decoding over the cache writes what running everything again for each token writes."""

    question = pipe._question(pipe.prepare(picture), None, 12, None)
    answer = read(pipe.model, question).answer_ids
    ids = torch.tensor([question.prompt_ids])
    with torch.inference_mode():
        for want in answer:
            token = pipe.model(ids, images_clip=question.images_clip).logits[:, -1].argmax(-1)
            assert int(token) == want
            ids = torch.cat([ids, token[None]], dim=1)


def test_transformers_generate_writes_the_same(pipe: SidaPipeline, picture: Path) -> None:

    question = pipe._question(pipe.prepare(picture), None, 12, None)
    answer = read(pipe.model, question).answer_ids
    ids = torch.tensor([question.prompt_ids])
    sequence = pipe.model.generate(
        ids, attention_mask=torch.ones_like(ids), images_clip=question.images_clip, max_new_tokens=12, do_sample=False, use_cache=True
    )
    assert sequence[0, ids.shape[1] :].tolist() == answer


def test_text_grows_as_it_is_written(pipe: SidaPipeline, picture: Path) -> None:
    seen: list[str] = []
    result = pipe(picture, max_new_tokens=6, on_text=seen.append)
    assert len(seen) == 6
    assert seen[-1].strip() == result.text


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_stays_close(checkpoint: Path, picture: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    exact, small = (SidaPipeline.from_pretrained(checkpoint, device="cpu", bits=b)(picture, decode="forced") for b in (None, bits))
    assert small.label is exact.label
    assert np.abs(np.array(list(small.probs.values())) - np.array(list(exact.probs.values()))).max() < 0.05


def test_quantising_leaves_the_heads_alone(checkpoint: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model, _ = load_pretrained(checkpoint)
    quantize(model, 4, torch.float32)
    packed = {n.split(".")[1] for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}
    assert packed == {"layers"}
    with pytest.raises(ValueError, match="bits is 3"):
        quantize(model, 3, torch.float32)


def test_refusals(checkpoint: Path, pipe: SidaPipeline, picture: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fp16 is not supported on a CPU"):
        SidaPipeline.from_pretrained(checkpoint, precision="fp16", device="cpu")
    with pytest.raises(ValueError, match="decode is 'beam'"):
        pipe(picture, decode="beam")
    with pytest.raises(ValueError, match="model_max_length"):
        pipe(picture, "why " * 2000)
    with pytest.raises(FileNotFoundError, match="nothing"):
        pipe(tmp_path / "nothing.png")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU"):
            SidaPipeline.from_pretrained(checkpoint, device="cuda")


def test_overlay_tints_the_mask_only() -> None:
    image, mask = np.full((4, 4, 3), 100, np.uint8), np.zeros((4, 4), bool)
    mask[0, 0] = True
    out = overlay(image, mask)
    assert out[0, 0].tolist() == [177, 50, 50]
    assert (out[1:] == 100).all()
    with pytest.raises(ValueError, match="same height"):
        overlay(image, mask[:2])


def test_chat_one_shot(checkpoint: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--version", str(checkpoint), "--image", str(picture), "--vis_save_path", str(tmp_path), "--json", "--model_max_length", "6", "--device", "cpu"]
    assert chat.main(argv) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["label"] == "tampered"
    assert set(record["probs"]) == {"real", "full_synthetic", "tampered"}
    mask = cv2.imread(record["mask"], cv2.IMREAD_UNCHANGED)
    assert Path(record["mask"]).name == "tampered_0_mask_0.png"
    assert Path(record["overlay"]).name == "tampered_0_masked_img_0.jpg"
    assert mask.shape == cv2.imread(str(picture)).shape[:2]
    assert set(np.unique(mask)) <= {0, 255}


def test_chat_streams_to_a_terminal(
    checkpoint: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--version", str(checkpoint), "--image", str(picture), "--vis_save_path", str(tmp_path), "--model_max_length", "6", "--device", "cpu"]
    assert chat.main(argv) == 0
    piped = capsys.readouterr().out.splitlines()
    pieces: list[str] = []
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.write", lambda text, write=sys.stdout.write: (pieces.append(text), write(text))[1])
    assert chat.main(argv) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].rstrip() == piped[0].rstrip()
    assert len(shown) == len(piped)
    assert pieces[0].startswith("text_output:")
    assert shown[0] != pieces[0]  # the rest came later


def test_chat_loop_asks_again_for_a_wrong_path(
    checkpoint: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    lines = f"Is it real?\nnowhere.png\n{broken}\nIs it real?\n{picture}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert chat.main(["--version", str(checkpoint), "--vis_save_path", str(tmp_path), "--model_max_length", "4"]) == 0
    out, err = capsys.readouterr()
    assert "Please input your prompt: " in err
    assert "File not found in nowhere.png" in err
    assert "cannot read" in err
    assert out.count("text_output: ") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--version", "nowhere"], "no config.json in nowhere"),
        (["--version", "CK", "--vision-tower", "nobody/none", "--image", "PIC"], "--vision-tower"),
        (["--version", "CK", "--image", "nowhere.png"], "nowhere.png"),
    ],
)
def test_chat_errors_are_sentences(checkpoint: Path, picture: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    filled = [{"CK": str(checkpoint), "PIC": str(picture)}.get(word, word) for word in argv]
    assert chat.main(filled) == 1
    assert message in capsys.readouterr().err
