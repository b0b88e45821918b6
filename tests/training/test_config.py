"""The YAML files under configs/: that they say what the paper's arms are, and what a wrong one is answered with."""

import ast
import json
from pathlib import Path

import pytest
from places import ROOT

import experiments
from net2net.inception_bn import TABLES
from training.config import ConfigError, ModelConfig, _keys, differences, flatten, load
from training.runfolder import config_hash

pytestmark = pytest.mark.quick

ARMS = experiments.arms()


def laptop(arm, *overrides):
    return flatten(load(ROOT / "configs" / "laptop" / f"{arm}.yaml", overrides))


def write(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def config(tmp_path):
    """A function that writes a config extending the standard arm, and loads it."""

    def load_text(text, *overrides):
        return load(write(tmp_path / "arm.yaml", f"extends: {ROOT}/configs/laptop/standard.yaml\n{text}"), overrides)

    return load_text


SCALES = sorted(file.parent.name for file in (ROOT / "configs").glob("*/base.yaml"))


@pytest.mark.parametrize("scale", SCALES)
def test_every_arm_is_there_at_every_scale(scale):
    for arm in experiments.looks():
        load(ROOT / "configs" / scale / f"{arm}.yaml")


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_file_says_what_it_is_and_which_section_of_the_paper_it_is_of(file):
    text = file.read_text()
    assert text.startswith("# ")
    assert "Expected" not in text  # results stand in tables of results
    if file.parent.name == "arms":
        assert file.stem in experiments.looks()
        assert "sec" in text or "Not in the paper" in text


def test_a_scale_a_family_of_scales_and_an_arm_of_ones_own(tmp_path):
    """Beside the repository's: a scale is a file, an arm is a file, and either may extend what there is."""
    mine, arms = tmp_path / "mine", tmp_path / "arms"
    mine.mkdir()
    arms.mkdir()
    write(
        mine / "base.yaml",
        f"extends: {ROOT}/configs/laptop/base.yaml\ntraining: {{steps: 70}}\n"
        "arms:\n  wider: {training.steps: 50}\n  random_pad: {optimizer: {lr_scale: 0.2}}",
    )
    write(arms / "thin.yaml", "model: {width: 0.1}")
    write(mine / "own.yaml", "extends: wider.yaml\ngrowth: {noise: 0.5}")
    # own to the scale, shared with laptop's but for the last word, and inherited from the arm that it extends
    assert load(mine / "standard.yaml").training.steps == 70
    assert load(mine / "deeper.yaml").training.steps == 70
    pad = load(mine / "random_pad.yaml")
    assert (pad.training.steps, pad.optimizer.lr_scale, pad.growth.method) == (50, 0.2, "random_pad")
    assert load(mine / "thin.yaml").model.width == 0.1
    own = load(mine / "own.yaml")
    assert (own.growth.noise, own.growth.teacher, own.training.steps) == (0.5, "teacher_narrow", 50)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "wider.yaml: cannot read this config"),
        ({"mine/base.yaml": "extends: base.yaml"}, "base.yaml: extends itself"),
        ({"mine/base.yaml": "extends: null"}, "extends: expected a file or a list of files, got None"),
        ({"mine/base.yaml": "seed: 0", "arms/wide.yaml": ""}, "there is no such arm; did you mean 'wide'?"),
        ({"mine/base.yaml": "seed: 0", "arms/wider.yaml": "extends: wider.yaml"}, "wider.yaml: extends itself"),
        ({"mine/base.yaml": "arms: {wider: 3}"}, "arms: expected keys and values for each arm"),
        ({"mine/base.yaml": "arms: [wider]"}, "arms: expected keys and values for each arm"),
    ],
)
def test_a_wrong_scale_or_arm_is_answered_with_its_file(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, text)
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "mine" / "wider.yaml")
    assert words in str(error.value)


# What the paper's arms differ in, against the arm they are compared with, and nothing else.
@pytest.mark.parametrize(
    ("arm", "other", "keys"),
    [
        ("teacher_narrow", "standard", {"model.width"}),
        ("random_pad", "wider", {"growth.method", "growth.noise", "growth.exact"}),
        (
            "deeper",
            "wider_sqrt2",
            {"model.width", "model.extra_pairs", "growth.method", "growth.noise", "growth.exact"},
        ),
        ("deeper_4pairs", "deeper", {"model.extra_pairs"}),
        ("deeper_random_init", "standard", {"model.extra_pairs"}),
        ("wider_sqrt2", "wider", {"model.width", "growth.teacher"}),
    ],
)
def test_arms_differ_in_what_the_papers_arms_differ_in(arm, other, keys):
    a, b = laptop(arm), laptop(other)
    assert set(differences(a, b)) <= keys | {"optimizer.lr_scale"}
    assert keys <= set(differences(a, b))


@pytest.mark.parametrize("method", ["random_pad", "net2deeper", "continue"])
def test_what_the_method_of_growth_does_not_read_is_no_part_of_the_record(method):
    """An old record that claims noise, where none was applied, is of the same run."""
    now = laptop("wider", f"growth.method={method}")
    assert now["growth.noise"] is None
    assert now["growth.exact"] is None
    recorded = {**now, "growth.noise": 0.02, "growth.exact": False}
    assert differences(now, recorded) == []
    assert config_hash(now) == config_hash(recorded)
    other = laptop("wider", f"growth.method={method}", "growth.calibration_images=32")
    assert (differences(now, other) == []) == (method != "net2deeper")
    assert now["growth.calibration_images"] == 256  # as in the records that there are
    widened = laptop("wider")
    assert widened == laptop("wider", "growth.calibration_images=32")
    assert widened["growth.noise"] == 0.02
    assert differences(widened, {**widened, "growth.noise": 0.0}) == ["growth.noise"]
    assert flatten(load(ROOT / "configs" / "laptop" / "standard.yaml"))["growth"] is None


def test_a_key_that_an_older_record_lacks_stands_for_how_it_was_then():
    now = laptop("standard")
    older = {key: value for key, value in now.items() if key not in ("model.multiple_of", "model.init")}
    assert differences(now, older) == []
    assert config_hash(now) == config_hash(older)
    assert differences(laptop("standard", "model.multiple_of=8"), older) == ["model.multiple_of"]
    assert differences(laptop("standard", "model.init=pytorch"), older) == ["model.init"]


@pytest.mark.parametrize("scale", ["gpu", "imagenet"])
def test_on_gpus_all_arms_have_channels_that_tensor_cores_like(scale):
    assert {load(ROOT / "configs" / scale / f"{arm}.yaml").model.multiple_of for arm in experiments.looks()} == {8}


def test_committed_runs_are_of_the_configs_as_they_are_now():
    for arm in ARMS:
        recorded = json.loads((ROOT / "results" / "laptop-1000" / arm / "seed1" / "run.json").read_text())["config"]
        now = flatten(load(ROOT / "configs" / "laptop-1000" / f"{arm}.yaml", ["seed=1"]))
        assert differences(now, recorded) == []


def test_all_arms_of_a_figure_have_one_axis():
    for arm in ARMS:
        assert laptop(arm)["training.steps"] == laptop("standard")["training.steps"]


def test_students_differ_from_scratch_in_their_growth_and_their_rate():
    keys = set(differences(laptop("wider"), laptop("standard")))
    assert {k.split(".")[0] for k in keys} == {"growth", "optimizer"}
    assert keys - {"optimizer.lr_scale"} == {k for k in keys if k.startswith("growth")}


def test_the_paper_s_numbers():
    assert laptop("teacher_narrow")["model.width"] == pytest.approx(0.3**0.5, abs=1e-4)
    assert laptop("wider_sqrt2")["model.width"] == pytest.approx(2**0.5, abs=1e-4)
    assert (laptop("deeper")["model.extra_pairs"], laptop("deeper_4pairs")["model.extra_pairs"]) == (2, 4)


def test_the_config_knows_the_networks_there_are():
    assert set(ModelConfig.model_fields["name"].annotation.__args__) == set(TABLES)


def test_every_key_is_read_by_something():
    """A key counts as read where `.section.key` (or `.key` of a variable holding the section) stands in the code."""
    read = set()
    for file in [ROOT / "train.py", *(ROOT / "training").rglob("*.py"), *(ROOT / "replicate").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                holder = node.value
                read.add((getattr(holder, "attr", getattr(holder, "id", "")), node.attr))
    # `self`: what a section of the config works out from its own keys
    aliases = {"growth": {"growth", "wants"}, "teacher_prediction": {"teacher_prediction", "options", "wants"}}
    aliases |= {
        "optimizer": {"optimizer", "options"},
        "training": {"training", "options", "self"},
        "wandb": {"options"},
    }
    for key in _keys():
        section, _, leaf = key.rpartition(".")
        holders = aliases.get(section, {section}) if section else {"config"}
        assert any((holder, leaf) in read for holder in holders), f"nothing reads {key}"


def test_overrides_come_last_and_are_typed(config):
    assert config("", "optimizer.lr=1e-4").optimizer.lr == 1e-4
    assert config("seed: 3", "seed=4").seed == 4


@pytest.mark.parametrize("root", ["/data/a: b", "/data/a #1", "~/[x] y", "$SCRATCH/x", "- a", "#1"])
def test_a_word_given_with_set_is_that_word(config, root):
    assert config("", f"data.root={root}").data.root == root


def test_extends_merges_section_by_section(config):
    merged = config("optimizer: {lr: 2e-3}")
    assert merged.optimizer.lr == 2e-3
    assert merged.optimizer.momentum == laptop("standard")["optimizer.momentum"]


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("optimizer: {lr_scal: 0.1}", [], ["arm.yaml", "'optimizer.lr_scal'", "did you mean 'optimizer.lr_scale'"]),
        ("lr_scale: 0.1", [], ["'lr_scale'", "did you mean 'optimizer.lr_scale'"]),
        ("", ["trainin.steps=3"], ["--set trainin.steps=3", "did you mean 'training.steps'"]),
        ("zzz: 1", [], ["unknown key 'zzz'", "valid keys"]),
        ("optimizer: {lr: fast}", [], ["arm.yaml", "optimizer.lr", "number", "'fast' (str)"]),
        ("training: {steps: 1.5}", [], ["training.steps", "integer", "1.5 (float)"]),
        ("training: {steps: 0}", [], ["training.steps", "greater than 0", "0 (int)"]),
        ("data: {validation: train}", [], ["data.validation", "'test' or 'held_out'", "'train'"]),
        ("model: {name: resnet}", [], ["model.name", "inception_bn_28", "'resnet'"]),
        ("growth: {method: net2wider}", [], ["growth.teacher", "missing"]),
        ("", ["optimizer.lr"], ["--set optimizer.lr", "key=value"]),
        ("", ["optimizer.lr=[1"], ["--set optimizer.lr=[1", "not valid YAML"]),
        ("seed: 1\nseed: 2", [], ["arm.yaml", "line 3", "'seed' is given twice"]),
        ("model: [", [], ["arm.yaml", "not valid YAML"]),
        ("training: {steps: 0100}", [], ["arm.yaml", "line 2", "could be octal: write 100"]),
        ("training: {steps: 1:30}", [], ["arm.yaml", "training.steps", "'1:30' (str)"]),
        ("training: {compile: on}", [], ["arm.yaml", "training.compile", "'on' (str)"]),
        ("", ["training.steps=0100"], ["--set training.steps=0100", "write 100"]),
        ("training: {steps: 1_000}", [], ["training.steps: expected an integer, got '1_000' (str)"]),
        ("training: {steps: 1e3}", [], ["training.steps: expected an integer, got 1000.0 (float)"]),
        ("training:", [], ["arm.yaml: training: expected keys and values, got None"]),
        ("training: {}", [], ["arm.yaml: the key 'training.steps' is missing"]),
        ("optimizer: {lr: .inf}", [], ["arm.yaml: optimizer.lr: expected a finite number"]),
        ("optimizer: {lr: 1e400}", [], ["optimizer.lr: expected a finite number"]),
        ("training.steps: 1\ntraining: {steps: 2}", [], ["arm.yaml: training.steps: is given twice"]),
        ("training.steps: 1\ntraining: null", [], ["arm.yaml: training: is given twice"]),
        ("", ["training.steps.x=1"], ["--set training.steps.x=1: training.steps: expected an integer"]),
        ("", ["growth={}"], ["--set growth={}: the key 'growth.teacher' is missing"]),
        ("", ["data.name=imagenet"], ["--set data.name=imagenet: the key 'data.classes' is missing, which this"]),
        ("", [".training=1"], ["--set .training=1: expected key=value"]),
        ("", ["..=1"], ["--set ..=1: expected key=value"]),
        ("", ["training.steps=!!int 3"], ["--set training.steps=!!int 3", "tags (!!int) are not read here"]),
        (
            "",
            ["optimizer.lr=1e300"],
            ["--set optimizer.lr=1e300: optimizer.lr: expected less than or equal to 1000000"],
        ),
        ("", ["optimizer.lr_scale=1e308"], ["optimizer.lr_scale: expected less than or equal to 1000000"]),
        ("", ["optimizer.eps=1e300"], ["optimizer.eps: expected less than or equal to 1000000"]),
        ("growth: null", ["growth.noise=1e300"], ["growth.noise: expected less than or equal to 1, got 1e+300"]),
        ("", ["growth.calibration_images=100000000"], ["growth.calibration_images: expected less than or equal to"]),
        ("", ["model.width=1e9"], ["model.width: expected less than or equal to 16"]),
        ("", ["model.width=1e-9"], ["model.width: expected greater than or equal to 0.01"]),
        ("", ["model.multiple_of=100000000"], ["model.multiple_of: expected less than or equal to 256"]),
        ("", ["model.extra_pairs=100000"], ["model.extra_pairs: expected less than or equal to 100"]),
        (
            "",
            ["schedule.warmup_steps=99999"],
            ["--set schedule.warmup_steps=99999: schedule.warmup_steps: expected less than"],
        ),
        (
            "teacher_prediction: {teacher: standard, layers: [a, b, a], weight: 1.0}",
            [],
            ["arm.yaml: teacher_prediction.layers: 'a' is given twice"],
        ),
        ("", ["training.compile=1"], ["training.compile: expected true or false, or 'modules', got 1 (int)"]),
        ("", ["seed=1_0"], ["--set seed=1_0: seed: expected an integer, got '1_0' (str)"]),
    ],
)
def test_a_wrong_config_is_answered_with_file_key_and_what_was_expected(config, text, overrides, words):
    with pytest.raises(ConfigError) as error:
        config(text, *overrides)
    for word in words:
        assert word in str(error.value)


def test_a_value_that_may_be_of_two_kinds_is_answered_with_one_line(config):
    with pytest.raises(ConfigError) as error:
        config("", "training.compile=module")
    said = "--set training.compile=module: training.compile: expected true or false, or 'modules', got 'module' (str)"
    assert str(error.value) == said
    for value in (True, False, "modules"):
        assert config("", f"training.compile={value}".lower()).training.compile is value or value == "modules"


@pytest.mark.parametrize(
    ("teacher", "arm"),
    [("standard", True), ("wider_rate_0.3", True), ("x.safetensors", False), ("x.pt", False), ("a/b", False)],
)
def test_a_teacher_is_an_arm_or_a_file(teacher, arm):
    config = load(ROOT / "configs" / "laptop" / "wider.yaml", [f"growth.teacher={teacher}"])
    assert config.teacher_arm == (teacher if arm else None)


def test_a_missing_file_and_a_file_that_extends_itself(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot read"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot read this config \(named by extends: in a\.yaml\)"):
        load(write(tmp_path / "a.yaml", "extends: none.yaml"))
    with pytest.raises(ConfigError, match="extends itself"):
        load(write(tmp_path / "b.yaml", "extends: b.yaml"))
    with pytest.raises(ConfigError, match="expected keys and values, got list"):
        load(write(tmp_path / "c.yaml", "- 1"))


def test_a_config_by_half_of_its_name_and_by_none(tmp_path):
    smoke = ROOT / "configs" / "smoke"
    for name in ("standard", "standard.yml"):
        with pytest.raises(ConfigError, match=r"there is no such config; did you mean .*smoke/standard\.yaml\?"):
            load(smoke / name)
    for name in ("a" * 300, "a\0b", ""):
        with pytest.raises(ConfigError, match="cannot read this config: "):
            load(name)


def test_variables_and_home_in_paths_are_read_where_they_are_used_and_not_recorded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DISK", str(tmp_path / "disk"))
    file = ROOT / "configs" / "imagenet" / "standard.yaml"
    for root, folder in (("~/a b", "home/a b"), ("$DISK/x", "disk/x"), ("${DISK}_2/x", "disk_2/x"), ("a$-b", None)):
        config = load(file, [f"data.root={root}"])
        assert config.data.root == flatten(config)["data.root"] == root
        assert config.data.folder == (tmp_path / folder if folder else Path(root))
    for value in (None, ""):
        monkeypatch.delenv("DISK") if value is None else monkeypatch.setenv("DISK", value)
        with pytest.raises(ConfigError, match=r"^data\.root: \$DISK/x: the variable \$DISK is not set here: set it"):
            load(file, ["data.root=$DISK/x"]).data.folder  # noqa: B018


def test_extends_follows_variables_and_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCALES", str(ROOT / "configs"))
    write(tmp_path / "mine.yaml", "extends: $SCALES/smoke/standard.yaml\nseed: 5")
    assert load(write(tmp_path / "b.yaml", "extends: ~/mine.yaml")).seed == 5
    with pytest.raises(ConfigError, match=r"c\.yaml: extends: \$NOWHERE/x: the variable \$NOWHERE is not set here"):
        load(write(tmp_path / "c.yaml", "extends: $NOWHERE/x"))


@pytest.mark.parametrize("key", ["classes", "train_images", "val_images"])
def test_the_numbers_of_imagenet_are_not_left_to_what_is_found(key):
    file = ROOT / "configs" / "imagenet" / "standard.yaml"
    with pytest.raises(ConfigError, match=rf"data\.{key}: null \(as many as are found\) is for data\.name: folder"):
        load(file, [f"data.{key}=null"])
    assert load(file, ["data.name=folder", f"data.{key}=null"]).data.name == "folder"
