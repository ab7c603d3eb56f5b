"""The trainer's decisions, without a model; tests/scripts run the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.utils.train.toy import flags
from utils.data.sampler import BatchStream
from utils.train.build import loss_weights
from utils.train.checkpoints import TrainState
from utils.train.config import TrainConfig
from utils.train.trainer import deciding, find_resume, gains, whole_pass


def figures(accuracy: float, iou: float, ce: float) -> dict:
    return {"accuracy": accuracy, "legacy_gIoU": iou, "ce": ce}


def test_gains_compare_before_they_update() -> None:
    state = TrainState()
    assert gains(state, figures(0.0, 0.0, 3.0)) == {"best_accuracy": True, "best_iou": True, "best_ce": True}
    assert gains(state, figures(0.5, 0.0, 4.0)) == {"best_accuracy": True, "best_iou": False, "best_ce": False}
    assert gains(state, figures(0.5, 0.2, 2.0)) == {"best_accuracy": False, "best_iou": True, "best_ce": True}
    assert (state.best_accuracy, state.best_iou, state.best_ce) == (0.5, 0.2, 2.0)


def test_explanations_are_judged_by_their_language_loss() -> None:
    assert deciding("sida", figures(0.5, 0.2, 2.0)) == "best_accuracy"
    assert deciding("description", figures(0.5, 0.2, 2.0)) == "best_ce"
    assert deciding("description", figures(0.5, 0.2, 0.0)) == "best_accuracy"


def test_one_pass_over_the_data() -> None:
    stream = BatchStream([0] * 9, 2)  # 5 batches, 2 per step
    assert whole_pass(flags(steps_per_epoch=0), stream).steps_per_epoch == 3
    assert whole_pass(flags(steps_per_epoch=7), stream).steps_per_epoch == 7


def test_loss_weights() -> None:
    assert loss_weights(TrainConfig(bce_loss_weight=3.0)).bce == 3.0
    assert not loss_weights(TrainConfig()).shared_mask
    assert loss_weights(TrainConfig(compat="reference")).shared_mask
    assert not loss_weights(TrainConfig(compat="reference", stage="description")).shared_mask


def run_in(tmp_path: Path, **changes: object) -> TrainConfig:
    return flags(log_base_dir=str(tmp_path), exp_name="run", **changes)


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert find_resume(run_in(tmp_path)) is None
    assert find_resume(run_in(tmp_path, auto_resume=False)) is None


def test_an_interrupted_first_save_starts_over(tmp_path: Path) -> None:
    (tmp_path / "run" / "ckpt_last" / "global_step3.tmp").mkdir(parents=True)
    assert find_resume(run_in(tmp_path)) is None


def test_a_broken_checkpoint_is_an_error_even_when_found(tmp_path: Path) -> None:
    (tmp_path / "run" / "ckpt_last" / "global_step3").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="has no `latest`"):
        find_resume(run_in(tmp_path))


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run" / "ckpt_last" / "global_step3").mkdir(parents=True)
    with pytest.raises(ValueError, match="--auto_resume is off: choose another --exp_name"):
        find_resume(run_in(tmp_path, auto_resume=False))


def saved_run(tmp_path: Path, **began: str) -> Path:
    tag = tmp_path / "run" / "ckpt_last" / "global_step3"
    tag.mkdir(parents=True)
    (tag.parent / "latest").write_text(tag.name)
    (tag / "state.json").write_text('{"world_size": 1}')
    (tmp_path / "run" / "args.json").write_text(json.dumps({"version": "ck/A", "stage": "sida"} | began))
    return tag.parent


def test_a_run_goes_on_where_it_began(tmp_path: Path) -> None:
    last = saved_run(tmp_path)
    assert find_resume(run_in(tmp_path, version="ck/A")) == last
    assert find_resume(run_in(tmp_path, version=str(Path("ck/A").resolve()))) == last


@pytest.mark.parametrize(("began", "message"), [({"version": "ck/B"}, "--version ck/B, not ck/A"), ({"stage": "description"}, "--stage description, not sida")])
def test_a_run_that_began_elsewhere_is_not_gone_on_with_by_accident(tmp_path: Path, began: dict[str, str], message: str) -> None:
    last = saved_run(tmp_path, **began)
    with pytest.raises(ValueError, match=f"{message}: choose another --exp_name"):
        find_resume(run_in(tmp_path, version="ck/A"))
    assert find_resume(run_in(tmp_path, version="ck/A", resume=str(last))) == last


def test_resume_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        find_resume(run_in(tmp_path, resume=str(tmp_path / "nowhere")))
