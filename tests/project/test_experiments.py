"""The data of experiments/: read without torch, complete, and by a reader that takes YAML at its word."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

import experiments
from experiments.reading import YamlError, parse, read

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-2.5E+4", -2.5e4),
        (".5", 0.5),
        ("12", 12),
        ("-0", 0),
        ("1:30", "1:30"),
        ("24:00:00", "24:00:00"),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("2026-11-27", "2026-11-27"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("~", None),
        ("", None),
        ("'0100'", "0100"),
        ("4pairs", "4pairs"),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
        ("0o17", "0o17"),
        ("5.", 5.0),
        ("y", "y"),
        ("%YAML 1.2\n---\n1\n...\n", 1),
    ],
)
def test_yaml_means_what_it_says(text, value):
    found = parse(text, "here")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"steps: 0100", "could be octal: write 100"),
        (b"steps: -007", "could be octal: write 7"),
        (b"a: 1\nb: 2\na: 3", "line 3: not valid YAML: the key 'a' is given twice"),
        (b"a: {b: 1, b: 2}", "'b' is given twice"),
        (b"a: &a {b: 1}\nc: {<<: *a}", "merge keys (<<) are not read here"),
        (b"# J\xf6rg\na: 1", "line 1: the byte 0xf6 is not UTF-8"),
        ("a: 1".encode("utf-16"), "is not UTF-8"),
        (b"a: &a {b: *a}", "*a contains itself"),
        (b"[a, b]: 1", "a key has to be a word or a number"),
        (b"a: " + b"[" * 3000, "nested too deeply"),
        (b"- 1", "expected keys and values, got list"),
        (b"a: [1", "not valid YAML"),
        (b"a: \x00", "not valid YAML"),
        (b"a: !!python/name:os.system", "not valid YAML"),
        (b"a: !!int 0100", "tags (!!int) are not read here"),  # which would be 64 all the same
        (b"a: !!int ''", "tags (!!int) are not read here"),
        (b"a: !!bool maybe", "tags (!!bool) are not read here"),
        (b"a: !!timestamp x", "tags (!!timestamp) are not read here"),
        (b"a: !mine {b: 1}", "tags (!mine) are not read here"),
        (b"a: !!set {b, c}", "tags (!!set) are not read here"),
        (b'a: "b\\0c"', "the character U+0000 is not allowed in a word"),
        (b'a: ["\\ud800"]', "the character U+D800 is not allowed in a word"),
        ("a: 1".encode("utf-16-le"), "line 1: not valid YAML: the character U+0000 is not allowed: is it text"),
        (b"a: 1\nb: \x07", "line 2: not valid YAML: the character U+0007 is not allowed"),
        (b"a: 1\n---\na: 2", "another document"),
        (b"a:\n\tb: 1", "line 2: not valid YAML: found character '\\t'"),
        (b"a: *b", "undefined alias 'b'"),
    ],
)
def test_what_could_mean_two_things_or_nothing_is_an_error(tmp_path, content, words):
    file = tmp_path / "file.yaml"
    file.write_bytes(content)
    with pytest.raises(YamlError) as error:
        read(file)
    assert words in str(error.value)
    assert str(file) in str(error.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "file.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read(tmp_path / "file.yaml") == {"a": 1}


def test_every_arm_that_is_drawn_or_run_has_a_look_of_its_own():
    looks = experiments.looks()
    assert len({(look.colour, str(look.line), look.marker) for look in looks.values()}) == len(looks)
    assert {arm for part in experiments.study().values() for arm in part.arms} <= looks.keys()


def test_an_arm_without_a_look_and_a_key_of_no_meaning_are_named(tmp_path):
    text = (Path(experiments.__file__).parent / "figures.yaml").read_text()
    for old, new, words in (
        ("students: [wider]", "students: [widr]", "fig4: there is no entry in arms: for widr"),
        ("label: random pad", "lable: random pad", "random_pad: got an unexpected keyword argument 'lable'"),
        ("    scratch: deeper_random_init\n", "", "fig5: missing 1 required positional argument: 'scratch'"),
    ):
        file = tmp_path / f"{new[:5].strip()}.yaml"
        file.write_text(text.replace(old, new))
        with pytest.raises(YamlError) as error:
            experiments.figures(file)
        assert words in str(error.value)


def test_they_are_read_without_torch():
    code = "import sys, experiments; experiments.figures(), experiments.study(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rates", [1, 0.3], "rates: expected numbers for each arm, e.g. wider: [1, 0.3]"),
        ("rates", {"wider": 0.3}, "rates: expected numbers for each arm"),
        ("rates", {"wider": [True]}, "rates: expected numbers for each arm"),
        ("variants", ["a"], "variants: expected keys and values, got ['a']"),
        ("set", "seed=3", "set: expected keys and values, got 'seed=3'"),
        ("variants", {"half": 0.5}, "variants: half: expected arm: and the keys that differ from it"),
        ("variants", {"half": {"optimizer.lr": 0.5}}, "variants: half: expected arm: and the keys that differ"),
        ("scale", 3, "scale and folder: expected a word each"),
        ("folder", ["a"], "scale and folder: expected a word each"),
        ("arms", "wider", "arms: expected a list of arms, got 'wider'"),
        ("arms", [1], "arms: expected a list of arms, got (1,)"),
        ("seeds", 3, "seeds: expected a list of whole numbers, got 3"),
        ("seeds", [1.5], "seeds: expected a list of whole numbers, got (1.5,)"),
        ("seeds", [-1], "seeds: expected a list of whole numbers, got (-1,)"),
        ("sedes", [1], "got an unexpected keyword argument 'sedes'"),
    ],
)
def test_a_part_of_the_study_that_is_none_is_named(tmp_path, key, value, words):
    good = {"scale": "long", "folder": "long", "seeds": [1], "arms": ["wider"]}
    (tmp_path / "study.yaml").write_text(json.dumps({"parts": {"mine": {**good, key: value}}}))
    with pytest.raises(YamlError) as error:
        experiments.study(tmp_path / "study.yaml")
    assert f"{tmp_path / 'study.yaml'}: parts: mine: {words}" in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("scratch", ["standard"], "scratch: expected a word, got ('standard',)"),
        ("teacher", 4, "teacher: expected a word, got 4"),
        ("curves", {"wider": "words"}, "curves: expected a list of arms"),
        ("curves", [1], "curves: expected a list of arms"),
        ("students", "wider", "students: expected a list of arms"),
        ("also", [1], "also: expected a list of arms"),
    ],
)
def test_a_figure_that_is_none_is_named(tmp_path, key, value, words):
    table = read(Path(experiments.__file__).parent / "figures.yaml")
    table["figures"]["fig4"][key] = value
    (tmp_path / "figures.yaml").write_text(json.dumps(table))
    with pytest.raises(YamlError) as error:
        experiments.figures(tmp_path / "figures.yaml")
    assert f"{tmp_path / 'figures.yaml'}: figures: fig4: {words}" in str(error.value)
