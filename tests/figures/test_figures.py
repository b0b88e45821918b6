"""The figures and their tables, from small CSV files written here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from finished import changed, write_run
from places import ROOT

from experiments import figures, looks
from experiments.reading import YamlError
from figures.command import main
from figures.curves import read_arms, read_there
from figures.style import draw
from figures.tables import as_text, final_table, levels, steps_table

pytestmark = pytest.mark.quick

FIG4, FIG5, FIG6 = figures(folder=Path("none of one's own")).values()
PARTS = [".pdf", ".png", "_final.csv", "_steps.csv"]


@pytest.fixture
def root(tmp_path):
    """One seed of every arm that Fig 4 and Fig 5 need; the numbers below are worked out by hand from these."""
    root = tmp_path / "laptop"
    write_run(root / "teacher_narrow/seed0", [10, 60, 80, 84, 85])
    write_run(root / "standard/seed0", [10, 50, 80, 86, 88.7])
    write_run(root / "wider/seed0", [84.5, 82, 87, 88, 89])
    write_run(root / "random_pad/seed0", [30, 70, 84, 87, 88])
    write_run(root / "deeper/seed0", [88, 87, 89, 90, 90])
    write_run(root / "deeper_random_init/seed0", [10, 30, 60, 85, 87])
    return root


def cells(table, arm, column):
    """One arm's column, with None for the empty cells."""
    return [None if value != value else value for value in table[table.arm == arm][column]]


def test_steps_and_ratios_by_hand(root):
    arms = read_arms(FIG4, root)
    # The top is the 88.7 of `standard` rounded down; 0.5 points apart would make 15 levels down to 85 - 4.
    assert levels(FIG4, arms) == [81.5, 82.5, 83.5, 84.5, 85.5, 86.5, 87.5, 88.5]
    table = steps_table(FIG4, arms)
    assert cells(table, "standard", "steps") == [300, 300, 300, 300, 300, 400, 400, 400]
    assert cells(table, "standard", "ratio") == [1] * 8
    assert cells(table, "wider", "steps") == [0, 0, 0, 0, 200, 200, 300, 400]
    assert cells(table, "wider", "at_start") == [1, 1, 1, 1, 0, 0, 0, 0]
    assert cells(table, "wider", "ratio") == [None, None, None, None, 1.5, 2, 1.333, 1]
    assert cells(table, "random_pad", "steps") == [200, 200, 200, 300, 300, 300, 400, None]
    assert cells(table, "random_pad", "reached") == [1] * 7 + [0]
    text = as_text(FIG4, table, final_table(arms))
    assert "at start" in text
    assert "200 (1.5x)" in text
    assert "not reached (0/1)" in text


def test_a_level_counts_for_an_arm_only_when_all_its_seeds_reach_it(root):
    write_run(root / "wider/seed1", [81.5, 82, 85, 86, 87])
    write_run(root / "standard/seed1", [10, 50, 60, 80, 90])
    table = steps_table(FIG4, read_arms(FIG4, root, partial=True))
    assert cells(table, "standard", "steps") == [350, 350, 350, 350, 350, 400, 400, 400]
    assert cells(table, "wider", "steps") == [0, 100, 100, 100, 250, 300, None, None]
    assert cells(table, "wider", "ratio") == [None, None, None, None, 1.4, 1.333, None, None]
    assert cells(table, "wider", "at_start") == [2, 1, 1, 1, 0, 0, 0, 0]
    assert cells(table, "wider", "reached") == [2, 2, 2, 2, 2, 2, 1, 1]
    text = as_text(FIG4, table, final_table(read_arms(FIG4, root, partial=True)))
    assert "100 (1 at start)" in text
    assert "not reached (1/2)" in text


def test_the_arms_of_a_figure_have_the_same_seeds(root, tmp_path, capsys):
    """A student is as good as the teacher of its seed: a mean over more of them would compare teachers."""
    for arm in ("teacher_narrow", "standard", "wider"):
        write_run(root / arm / "seed1", [10, 40, 50, 60, 61])
    assert {arm: len(runs) for arm, runs in read_arms(FIG4, root).items()} == dict.fromkeys(
        (*FIG4.curves, FIG4.teacher), 1
    )
    assert "of the seeds that all its arms" in (said := capsys.readouterr().err)
    assert said.endswith("have: random_pad lacks seed 1\n")
    assert {arm: len(runs) for arm, runs in read_arms(FIG4, root, partial=True).items()}["wider"] == 2
    (root / "random_pad" / "seed0").rename(root / "random_pad" / "seed2")
    assert "no seed in common (" in (line := failure(root, tmp_path / "out", capsys))
    assert "random_pad lacks seed 0, 1" in line
    assert "--partial" in line


def test_a_percentage_is_reached_although_floats_round(tmp_path):
    assert 100 * 0.57 < 57
    for arm in FIG4.curves:
        write_run(tmp_path / arm / "seed0", [10, 57])
    arms = read_arms(FIG4, tmp_path)
    assert levels(FIG4, arms)[-1] == 57
    assert cells(steps_table(FIG4, arms), "wider", "reached")[-1] == 1


def test_starts_and_ends(root):
    write_run(root / "wider/seed1", [83.5, 80, 85, 86, 88])
    finals = final_table(read_arms(FIG4, root, partial=True)).set_index("arm")
    wider = finals.loc["wider"]
    assert (wider.seeds, wider.finished, wider.steps) == (2, 2, 400)
    assert (wider.val_start, wider.val_lowest, wider.val_best, wider.val_final) == (84, 81, 88.5, 88.5)
    assert wider.val_final_std == 0.707
    assert finals.val_final_std.isna()["standard"]


def test_files_appear_whole_and_are_the_same_in_another_process_without_torch(root, tmp_path):
    out = tmp_path / "out"
    assert main("fig5", argv=[str(root), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [f"fig5{part}" for part in PARTS]
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['fig5.py', {str(root)!r}, '--out', {str(tmp_path / 'again')!r}]\n"
        "try: runpy.run_path('figures/fig5.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'torch', 'net2net', 'training', 'replicate'}, loaded\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"  # it would pick a backend of its own
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "MPLBACKEND": "no such backend"}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True, capture_output=True)
    assert b"atplotlib" not in (out / "fig5.png").read_bytes() + (out / "fig5.pdf").read_bytes()  # no version
    for part in PARTS:
        assert (out / f"fig5{part}").read_bytes() == (tmp_path / f"again/fig5{part}").read_bytes()


def test_a_band_from_three_seeds_on_and_lines_below(root):
    for seed in (1, 2):
        write_run(root / f"wider/seed{seed}", [84.5, 82, 87, 88, 89 + seed])
    write_run(root / "random_pad/seed1", [31, 71, 85, 86, 87])
    figure = draw(FIG4, read_arms(FIG4, root, partial=True), smoke=False)
    validation = figure.axes[1]
    assert len(validation.collections) == 1
    (band,) = validation.collections
    assert band.get_paths()[0].get_extents().ymax == 91
    by_colour = {
        arm: [line for line in validation.lines if line.get_color() == looks()[arm].colour] for arm in FIG4.curves
    }
    (mean,) = by_colour["wider"]
    assert list(mean.get_ydata()) == [84.5, 82, 87, 88, 90]
    assert len(by_colour["random_pad"]) == 2
    assert len(by_colour["teacher_narrow"]) == 2  # its curve and its last accuracy
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:2] == ["Net2WiderNet, n = 3", "random pad, n = 2"]
    assert "minimum to maximum" in figure.legends[0].get_title().get_text()
    assert len(figure.axes[0].texts) == 0


def test_the_whole_climb_is_above_and_its_last_points_below(root):
    axes = draw(FIG4, read_arms(FIG4, root, partial=True), smoke=False).axes
    for panel, lowest in zip(axes[:2], (50, 10), strict=True):  # no mini-batch has run before step 0
        bottom, top = panel.get_ylim()
        assert bottom == lowest
        assert 89 < top < 100
    for panel in axes[2:]:
        bottom, top = panel.get_ylim()
        assert bottom == 84  # five points below the best, 89; the teacher's 85 and the students' ends lie above
        assert 89 < top < 91
    write_run(root / "wider/seed1", [84.5, 82, 83, 83, 82])
    assert (
        draw(FIG4, read_arms(FIG4, root, partial=True), smoke=False).axes[3].get_ylim()[0] == 81
    )  # a student's end is seen


def test_the_large_nets_from_scratch_are_drawn_where_they_were_run(root):
    for arm in ("wider_sqrt2", "deeper_4pairs"):
        write_run(root / arm / "seed0", [88, 87, 89, 90, 90])
    assert list(read_arms(FIG6, root)) == ["wider_sqrt2", "deeper_4pairs", "standard"]
    write_run(root / "sqrt2_random_init/seed0", [10, 30, 60, 85, 87])
    arms = read_arms(FIG6, root)
    assert list(arms) == ["wider_sqrt2", "deeper_4pairs", "standard", "sqrt2_random_init"]
    texts = [text.get_text() for text in draw(FIG6, arms, smoke=False).legends[0].get_texts()]
    assert [text for text in texts if text == "√2 net from scratch, n = 1"]


def test_an_arm_has_one_name_in_all_figures(root):
    for arm in ("wider_sqrt2", "deeper_4pairs"):
        write_run(root / arm / "seed0", [88, 87, 89, 90, 90])
    for plot, of_standard in ((FIG4, ""), (FIG5, "teacher's final accuracy (%s)"), (FIG6, "")):
        legend = draw(plot, read_arms(plot, root), smoke=False).legends[0]
        name = (of_standard or "%s") % "standard net from scratch"
        assert f"{name}, n = 1" in [text.get_text() for text in legend.get_texts()]


def config(folder, **keys):
    """Change what run.json says was run."""
    changed(folder, lambda info: info["config"].update(keys))


def test_seeds_of_one_arm_have_one_config(root, tmp_path, capsys):
    write_run(root / "wider/seed1", [84.5, 82, 87, 88, 89])
    for seed in (0, 1):
        config(root / f"wider/seed{seed}", **{"seed": seed, "data.root": f"/data{seed}", "training.keep": seed})
    assert len(read_arms(FIG4, root, partial=True)["wider"]) == 2
    for seed in (0, 1):  # each has a teacher of its own
        config(root / f"wider/seed{seed}", **{"growth.teacher": f"runs/mine/seed{seed}/best.pt"})
    assert len(read_arms(FIG4, root, partial=True)["wider"]) == 2
    config(root / "wider/seed1", **{"optimizer.lr_scale": 0.3})
    line = failure(root, tmp_path / "out", capsys)
    assert f"{root}/wider/seed0 and {root}/wider/seed1 are not two seeds of one arm: optimizer.lr_scale is None" in line


def test_a_seed_is_itself(root, tmp_path, capsys):
    config(root / "wider/seed0", seed=0)
    write_run(root / "wider/seed2", [84.5, 82, 87, 88, 89])
    config(root / "wider/seed2", seed=0)
    assert f"{root}/wider/seed2 holds a run of seed 0" in failure(root, tmp_path / "out", capsys)


def test_the_arms_of_a_figure_are_of_one_scale(root, tmp_path, capsys):
    for arm in FIG4.curves:
        config(root / arm / "seed0", **{"schedule.decay_steps": 30 if arm == "standard" else 25})
    line = failure(root, tmp_path / "out", capsys)
    assert f"{root}/wider/seed0 and {root}/standard/seed0 are of two scales" in line
    assert "schedule.decay_steps is 25 in the one, 30 in the other" in line


def test_other_runs_are_laid_beneath_as_thin_lines(root, tmp_path, capsys):
    mine = tmp_path / "mine"
    for seed, last in ((0, 90), (1, 92)):
        write_run(mine / f"wider/seed{seed}", [84.5, 82, 87, 88, last])
    figure = draw(FIG4, read_arms(FIG4, root), False, beside=("mine", read_there(FIG4, mine)))
    thin = [line for line in figure.axes[1].lines if line.get_linewidth() == 0.6]
    assert [list(line.get_ydata())[-1] for line in thin] == [91]
    assert "thin: mine" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert main("fig4", argv=[str(root), "--out", str(tmp_path / "out"), "--with", str(mine)]) == 0
    capsys.readouterr()
    assert main("fig5", argv=[str(root), "--out", str(tmp_path / "out"), "--with", str(mine)]) == 2
    assert f"There are no runs of fig5 in {mine}." in capsys.readouterr().err


def test_a_style_of_ones_own_is_laid_over_ours(root, tmp_path, capsys):
    style = tmp_path / "mine.mplstyle"
    style.write_text("axes.grid: False\nfont.size: 11\n")
    figure = draw(FIG5, read_arms(FIG5, root), False, style)
    assert figure.axes[0].xaxis.label.get_size() == 11
    assert main("fig5", argv=[str(root), "--out", str(tmp_path / "out"), "--style", str(style)]) == 0
    assert main("fig5", argv=[str(root), "--out", str(tmp_path / "out"), "--style", str(tmp_path / "no")]) == 2
    assert f"{tmp_path / 'no'} is no style that matplotlib can read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [("hello", "Missing colon"), ("axes.gird: True", "Bad key axes.gird"), ("font.size: big", "Bad value")],
)
def test_a_style_with_a_line_that_is_none_is_refused(root, tmp_path, capsys, line, words):
    style = tmp_path / "mine.mplstyle"
    style.write_text(f"axes.grid: False\n{line}\n")
    assert main("fig5", argv=[str(root), "--out", str(tmp_path / "out"), "--style", str(style)]) == 2
    error = capsys.readouterr().err
    assert f"{style} is no style that matplotlib can read: " in error
    assert words in error
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_refused_unless_it_is_asked_for(root, tmp_path, capsys):
    write_run(root / "teacher_narrow/seed1", [10, 60], status="running")
    line = failure(root, tmp_path / "out", capsys)
    assert f"{root}/teacher_narrow/seed1 is unfinished" in line
    assert "--partial" in line
    assert main("fig4", argv=[str(root), "--out", str(tmp_path / "out"), "--partial"]) == 0
    teacher = draw(FIG4, read_arms(FIG4, root, partial=True), smoke=False).axes[1].lines[-1]
    assert teacher.get_ydata()[0] == 85  # of the finished seed alone


def test_an_unfinished_run_says_so(root, capsys):
    write_run(root / "wider/seed1", [84.5, 82, 87], status="running")
    write_run(root / "wider/seed2", [84.5])  # has only just begun
    write_run(root / "wider/seed3", [84.5, 82, 87, 88, 89])
    arms = read_arms(FIG4, root, partial=True)
    figure = draw(FIG4, arms, smoke=False)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [label for label in labels if "(unfinished)" in label] == ["Net2WiderNet, n = 3 (unfinished)"]
    (mean,) = [line for line in figure.axes[1].lines if line.get_color() == looks()["wider"].colour]
    assert list(mean.get_xdata()) == [0, 100, 200]  # no mean of fewer seeds than the legend says
    second, first = capsys.readouterr().err.splitlines()
    assert first == f'warning: {root}/wider/seed1 is unfinished (its status is "running")'
    assert second == f"warning: {root}/wider/seed2 has no evaluation after step 0 yet and is left out"
    assert final_table(arms).set_index("arm").finished["wider"] == 2


@pytest.mark.parametrize(("folder", "data"), [("smoke", "fashion_mnist"), ("anything", "generated")])
def test_a_smoke_test_is_marked_in_every_panel(folder, data, tmp_path, monkeypatch):
    for arm in (*FIG5.curves, "standard"):
        write_run(tmp_path / folder / arm / "seed0", [10, 20], data=data)
    drawn = []
    monkeypatch.setattr("figures.command.draw", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    assert main("fig5", argv=[str(tmp_path / folder), "--out", str(tmp_path / "out")]) == 0
    assert len(drawn[0].axes) == 4
    for axes in drawn[0].axes:
        assert [text.get_text() for text in axes.texts] == ["smoke test: not a result"]


def test_nobodys_own_matplotlib_settings_show(root):
    with matplotlib.rc_context({"lines.linestyle": ":", "font.size": 30, "figure.facecolor": "black"}):
        figure = draw(FIG5, read_arms(FIG5, root), smoke=False)
    assert figure.get_facecolor() == (1, 1, 1, 1)
    assert figure.axes[0].xaxis.label.get_size() == 8


def failure(root, out, capsys, plot=FIG4):
    """The one sentence on stderr; nothing may have been written."""
    assert main(plot.name, argv=[str(root), "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert not out.is_dir()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith((".", "?"))
    return line


def test_a_table_of_figures_that_cannot_be_read(root, tmp_path, capsys, monkeypatch):
    def broken():
        raise YamlError("figures.yaml: line 2: not valid YAML")

    monkeypatch.setattr("figures.command.figures", broken)
    assert main(argv=[str(root), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: figures.yaml: line 2: not valid YAML\n"


def test_no_root(tmp_path, capsys):
    line = failure(tmp_path / "nowhere", tmp_path / "out", capsys)
    assert str(tmp_path / "nowhere") in line
    assert "`make figures`" in line
    assert "`make redraw`" in line


def test_no_arm(root, tmp_path, capsys):
    line = failure(root, tmp_path / "out", capsys, FIG6)
    assert str(root / "wider_sqrt2") in line
    assert "`python replicate/fig6.py --scale laptop`" in line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: "", "is empty or cannot be read"),
        (lambda text: "\0\xff\n1,2,3\n", "cannot be read"),
        (lambda text: text.splitlines()[0] + "\n", "has no rows"),
        (lambda text: text.replace("val_top1", "accuracy"), "lacks val_top1"),
        (lambda text: text + "500,1,1", "line 7"),  # cut off in the middle of a row
        (lambda text: text[:-2], "a line that is cut short or too long"),  # in a number: another one
        (lambda text: text.replace("\n", ",1\n").replace(",1\n", "\n", 1), "cut short or too long"),  # a field more
        (lambda text: text.replace("\n400,", "\ninf,"), "line 6"),
        (lambda text: text + text, "line 7"),  # a second header
        (lambda text: text.replace(",0.87", ",87"), "line 4"),  # percent
        (lambda text: text.replace("\n200,", "\n100,"), "step 100 twice"),
        (lambda text: text.replace("\n0,", "\n50,").replace(",,", ",0.1,"), "begins at step 50"),
    ],
)
def test_bad_metrics(change, says, root, tmp_path, capsys):
    file = root / "wider/seed0/metrics.csv"
    file.write_text(change(file.read_text()), encoding="latin-1")
    line = failure(root, tmp_path / "out", capsys)
    assert f"{file}" in line
    assert says in line
    if "step" not in says:
        assert "step,images,wall_s,lr,train_loss,train_top1,val_loss,val_top1" in line


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", "[" * 100_000])
def test_bad_run_json(content, root, tmp_path, capsys):
    file = root / "wider/seed0/run.json"
    file.unlink() if content is None else file.write_text(content)
    assert str(file) in failure(root, tmp_path / "out", capsys)


def test_seeds_of_different_lengths_have_no_mean(root, tmp_path, capsys):
    write_run(root / "wider/seed1", [84.5, 82, 87])
    assert "200 and 400" in failure(root, tmp_path / "out", capsys)


def test_out_cannot_be_written(root, tmp_path, capsys):
    out = tmp_path / "out"
    out.write_text("a file, not a folder")
    assert str(out) in failure(root, out, capsys, FIG5)


def test_a_failing_write_leaves_the_old_files_alone(root, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert main("fig5", argv=[str(root), "--out", str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for arm in {*FIG5.curves, FIG5.teacher}:
        write_run(root / arm / "seed1", [88, 87, 89, 90, 91])

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pandas.DataFrame.to_csv", full)
    capsys.readouterr()
    assert main("fig5", argv=[str(root), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: Cannot write into {out}: No space left on device.\n"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_one_missing_figure_does_not_keep_the_others_from_being_drawn(root, tmp_path, capsys):
    assert main("fig5", "fig6", argv=[str(root), "--out", str(tmp_path / "out")]) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"fig5{part}" for part in PARTS]
    assert "wider_sqrt2" in capsys.readouterr().err


LIES = {  # what is changed of seed 2 of `wider` below, and what is said
    "cut": (lambda f: cut(f / "metrics.csv", 20), "its metrics.csv ends with step 900, and its run.json says 2400"),
    "another run's curve": (
        lambda f: shutil.copy(f.parent / "seed1/metrics.csv", f),
        "ends with val_top1 0.9065, and its run.json says",
    ),
    "no accuracy": (
        lambda f: changed(f, lambda info: info["result"].update(all_val_top1=89.2)),
        "gives all_val_top1 as 89.2, which is no accuracy from 0 to 1",
    ),
    "not a number": (
        lambda f: changed(f, lambda info: info["result"].update(all_val_top1=float("nan"))),
        "gives all_val_top1 as nan",
    ),
    "another teacher": (
        lambda f: changed(f, lambda info: info["growth"].update(teacher_val_top1=0.5)),
        "wider/seed2 grew from a teacher of 50.00 %, and ",
    ),
    "other images": (
        lambda f: changed(f, lambda info: info["data"].update(fingerprint="0" * 64)),
        "were trained on other images: their names and labels differ",
    ),
    "other augmentation": (lambda f: config(f, **{"data.flip": False}), "data.flip is True in the one, False in"),
    "another arm": (
        lambda f: config(f, **{"growth.method": "random_pad"}),
        "holds a run of another arm: its growth.method is random_pad, and wider's is net2wider",
    ),
}


def cut(file, lines):
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:lines]))


@pytest.fixture
def copied(tmp_path):
    """Two seeds of Fig 4's arms, as they are recorded."""
    root = tmp_path / "long"
    for arm in ("teacher_narrow", "standard", "wider", "random_pad"):
        for seed in (1, 2):
            shutil.copytree(ROOT / "results" / "long" / arm / f"seed{seed}", root / arm / f"seed{seed}")
    return root


@pytest.mark.parametrize("name", LIES)
def test_what_is_not_one_run_s_record_is_not_drawn(copied, name, tmp_path, capsys):
    assert len(read_arms(FIG4, copied)["wider"]) == 2
    lie, words = LIES[name]
    lie(copied / "wider" / "seed2")
    assert words in failure(copied, tmp_path / "out", capsys)


def test_arms_that_were_evaluated_otherwise_have_no_place_in_one_figure(copied, tmp_path, capsys):
    for key, value in (("training.ema_decay", 0.0), ("schedule.warmup_steps", 50)):
        for seed in (1, 2):
            config(copied / f"standard/seed{seed}", **{key: value})
        assert f"two scales and have no place in one figure: {key}" in failure(copied, tmp_path / "out", capsys)
        for seed in (1, 2):
            shutil.copy(ROOT / f"results/long/standard/seed{seed}/run.json", copied / f"standard/seed{seed}")


def test_what_the_docs_train_with_another_value_is_not_drawn_as_the_arm_itself():
    page = (ROOT / "docs" / "replication.md").read_text()
    commands = re.findall(r"^python train.py configs/(\w+)/(\w+).yaml (.*--set .*)$", page, re.MULTILINE)
    assert commands
    for scale, arm, options in commands:
        folder = re.search(rf"--out runs/{scale}/([\w.]+)/seed\d", options)
        assert folder, f"{arm}: without --out it is written where the arm itself is"
        assert folder[1] not in looks()
