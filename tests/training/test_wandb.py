"""The copy in Weights & Biases, offline: one run for a stage whatever happens to it, each row exactly once."""

import json
import os
import signal
from collections import Counter
from functools import partial

import pytest
from jobs import FAST, Job, finish, manifest, state
from test_faults import be_told, before_step, die, in_write

OFFLINE = (*FAST, "wandb.mode=offline")


@pytest.fixture(autouse=True)
def _nothing_outside(tmp_path_factory, monkeypatch):
    """wandb keeps caches and settings in the home folder otherwise; the children get these from `at_home`."""
    folder = str(tmp_path_factory.mktemp("home"))
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, folder)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def at_home(rank, environment):
    os.environ.update(environment)


@pytest.fixture
def home():
    return partial(at_home, environment={k: v for k, v in os.environ.items() if k.startswith("WANDB_")})


def sent(out):
    """Steps and groups in the files that `wandb sync` would send, by the run's id."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    steps, groups = {}, set()
    for path in (out / "wandb").glob("offline-run-*/run-*.wandb"):
        name = path.stem.removeprefix("run-")
        counts = steps.setdefault(name, Counter())
        store = DataStore()
        store.open_for_scan(str(path))
        noted = []
        try:
            while (data := store.scan_data()) is not None:
                record = Record.FromString(data)
                if record.WhichOneof("record_type") == "run":
                    groups.add(record.run.run_group)
                if record.WhichOneof("record_type") == "history":
                    items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                    noted.append(
                        (json.loads(items["step"]), json.loads(items.get("_step", str(record.history.step.num))))
                    )
        except AssertionError:  # the end of a file whose writer was killed
            pass
        finally:
            store._fp.close()
        assert all(step == own for step, own in noted)
        counts.update(step for step, _ in noted)
    return steps, groups


def test_one_run_and_each_row_once_whenever_it_is_killed(tmp_path, home):
    out = tmp_path / "standard" / "seed0"
    moments = [
        partial(in_write, name="checkpoint.pt", number=1, moment="before"),  # wandb runs, there is no checkpoint yet
        partial(in_write, name="metrics.csv", number=1, moment="after"),  # step 0 is in the checkpoint, and not sent
        partial(before_step, who=0, step=3, action=die),  # step 2 was sent
    ]
    for moment in moments:
        assert Job("standard", out, *OFFLINE, patches=(home, moment)).wait() == [-signal.SIGKILL]
    finish("standard", out, *OFFLINE, patches=(home,))
    steps, groups = sent(out)
    assert steps == {manifest(out)["wandb_id"]: Counter([0, 2, 4, 6])}
    assert state(out)["wandb_id"] == manifest(out)["wandb_id"]
    assert groups == {f"{tmp_path.name}/fig4"}


def test_a_stop_leaves_its_rows_and_switched_off_it_touches_none(tmp_path, home):
    out = tmp_path / "run"
    stop = partial(before_step, who=0, step=2, action=partial(be_told, number=signal.SIGTERM))
    job = Job("standard", out, *OFFLINE, patches=(home, stop))
    assert job.wait() == [128 + signal.SIGTERM]
    assert "Traceback" not in job.errors()[0]
    ((name, counts),) = sent(out)[0].items()
    assert counts == Counter([0, 2])
    finish("standard", out, *FAST, "wandb.mode=disabled")  # switched off: nothing is sent, nothing is removed
    assert sent(out)[0] == {name: Counter([0, 2])}
    assert state(out)["wandb_id"] == name


def test_a_failure_of_wandb_does_not_stop_the_training(tmp_path, home):
    job = Job("standard", tmp_path / "run", *OFFLINE, patches=(home, broken))
    assert job.wait() == [0]
    error = job.errors()[0]
    assert error.count("train.py: wandb failed (OSError: gone)") == 1
    assert manifest(job.out)["status"] == "finished"


def broken(rank):
    import wandb

    def log(*arguments, **options):
        raise OSError("gone")

    wandb.Run.log = log


def test_wandb_that_does_not_start_ends_every_process(tmp_path, home):
    job = Job("standard", tmp_path / "run", *OFFLINE, world=2, patches=(home, refusing))
    assert job.wait() == [2, 2]
    assert "wandb does not start: no key; use --set wandb.mode=offline or disabled" in job.errors()[0]
    assert job.errors()[1] == ""


def refusing(rank):
    import wandb

    def init(*arguments, **options):
        raise wandb.Error("no key")

    wandb.init = init
