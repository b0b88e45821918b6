"""Finished runs, as files, for the tests of what is drawn and told of them."""

import json

from figures.curves import COLUMNS, read_seeds


def write_run(folder, val, *, every=100, status="finished", data="fashion_mnist", train=None):
    """A run whose validation accuracies, in percent, are `val`: one evaluation every `every` steps."""
    folder.mkdir(parents=True)
    lines = [",".join(COLUMNS)]
    for k, (seen, unseen) in enumerate(zip(train or val, val, strict=True)):
        lines.append(f"{k * every},{k * every * 128},{k}.5,0.01,1.0,{seen / 100 if k else ''},1.0,{unseen / 100}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    (folder / "run.json").write_text(json.dumps({"status": status, "config": {"data.name": data}}))


def add(root, arm, seed, val, final=None, rate=1.0, flops=10, teacher=None, **how):
    """A run with what run.json says of a finished one."""
    folder = root / arm / f"seed{seed}"
    write_run(folder, val, **how)
    info = json.loads((folder / "run.json").read_text())
    info["config"] |= {"optimizer.lr_scale": rate, "growth.teacher": teacher}
    info |= {"training_flops_per_image": flops, "parameters": 350_000}
    best = (val[-1] if final is None else final) / 100
    info |= {"result": {"val_top1": val[-1] / 100, "all_val_top1": best, "wall_s": len(val) - 0.5}}
    (folder / "run.json").write_text(json.dumps(info))
    return read_seeds(root / arm)[seed]


def changed(folder, change):
    """The run with something else in its run.json."""
    info = json.loads((folder / "run.json").read_text())
    change(info)
    (folder / "run.json").write_text(json.dumps(info))
