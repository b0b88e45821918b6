"""What runs of each kind computed when they were recorded, and of which config: it stays so, whatever moves.

Runs that were begun, and those of results/, have to go on meaning what they say. `PYTHONPATH=tests python
tests/project/test_golden.py FOLDER` records anew, after a change that is meant to change numbers.
"""

import json
import sys
from pathlib import Path

import pytest
from jobs import finish, float64, manifest, rows, state
from places import GOLDEN, ROOT

from experiments import looks
from training.config import GONE, OPERATIONAL, differences, flatten, load

RECORD = GOLDEN / "training.json"
SMALL = (
    "training.batch_size=8",
    "training.bn_batch_size=4",
    "training.steps=4",
    "training.eval_every=2",
    "data.val_images=20",
)
STUDENT = (*SMALL, "growth.calibration_images=8")
RUNS = {  # in an order in which teachers come first
    "teacher_narrow": (*SMALL, "model.width=0.1"),
    "standard": (*SMALL, "model.width=0.15", "training.label_smoothing=0.1", "optimizer.clip_norm=2.0"),
    "wider": (*STUDENT, "model.width=0.15", "growth.optimizer=carried"),
    "random_pad": (*STUDENT, "model.width=0.15"),
    "deeper": (*STUDENT, "model.width=0.15", "model.extra_pairs=1"),
    "teacher_prediction": (*SMALL, "model.width=0.15"),
}


def train_all(folder):
    """Rows, flat config and what is in the checkpoint, of each run; in float64, where machines agree."""
    found = {}
    for arm, overrides in RUNS.items():
        out = finish(arm, folder / arm / "seed0", *overrides, patches=(float64,))
        content = state(out)
        found[arm] = {
            "metrics": [{k: v for k, v in row.items() if k != "wall_s"} for row in rows(out)],
            "config": manifest(out)["config"],
            "sums": {k: sum(t.abs().sum().item() for t in content[k].values()) for k in ("model", "ema")},
            "keys": sorted(content),
        }
    return found


def flat_configs():
    """Of every arm at every scale."""
    scales = sorted(file.parent for file in (ROOT / "configs").glob("*/base.yaml"))
    return {f"{scale.name}/{arm}": flatten(load(scale / f"{arm}.yaml")) for scale in scales for arm in looks()}


def same_config(recorded, now):
    assert differences(recorded, now) == []
    assert recorded.keys() <= now.keys() | {*OPERATIONAL, *GONE}
    assert now.keys() - recorded.keys() <= set(OPERATIONAL)  # a key that is new is one that old runs do without


def test_runs_compute_what_they_did(tmp_path):
    recorded = json.loads(RECORD.read_text())["runs"]
    for arm, now in train_all(tmp_path).items():
        before = recorded[arm]
        same_config(before["config"], now["config"])
        assert set(before["keys"]) <= set(now["keys"]), f"{arm}: begun runs could not go on"
        assert len(before["metrics"]) == len(now["metrics"])
        for was, row in zip(before["metrics"], now["metrics"], strict=True):
            assert was.keys() == row.keys()
            for column, text in was.items():
                where = f"{arm}, step {row['step']}, {column}"
                assert (text == "") == (row[column] == ""), where
                assert text == "" or float(row[column]) == pytest.approx(float(text), rel=2e-5), where
        assert now["sums"] == pytest.approx(before["sums"], rel=1e-9), arm


def test_every_config_is_of_the_runs_that_it_was_of():
    recorded, now = json.loads(RECORD.read_text())["configs"], flat_configs()
    assert recorded.keys() <= now.keys()
    for name, config in recorded.items():
        same_config(config, now[name])


if __name__ == "__main__":
    found = {"configs": flat_configs(), "runs": train_all(Path(sys.argv[1]))}
    lines = [
        f' "{part}": {{\n'
        + ",\n".join(f'  "{k}": {json.dumps(v, separators=(",", ":"))}' for k, v in content.items())
        + "\n }"
        for part, content in found.items()
    ]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")
