"""The command line the figures share: read, draw, and put the files in place only when all of them are there."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from experiments import Figure as Plot
from experiments import figures
from experiments.paths import to_folder, to_path
from experiments.reading import YamlError
from figures.curves import Problem, read_arms, read_there
from figures.style import draw, save
from figures.tables import as_text, final_table, steps_table


def main(*names: str, argv: list[str] | None = None) -> int:
    """Draws these figures, or all, if their runs are there; returns 2, after a sentence, if one was not drawn."""
    parser = argparse.ArgumentParser(description=f"Draw {', '.join(names) or 'all figures'} from CSV files.")
    parser.add_argument("root", nargs="?", type=to_folder, default=Path("runs/laptop"), help="default: %(default)s")
    parser.add_argument("--out", type=to_path, default=Path("figures/out"), help="default: %(default)s")
    parser.add_argument("--partial", action="store_true", help="draw all runs, unfinished ones and single seeds too")
    parser.add_argument(
        "--with", dest="beside", type=to_folder, metavar="ROOT", help="other runs, as thin lines of their means"
    )
    parser.add_argument("--style", type=to_path, metavar="FILE.mplstyle", help="a matplotlib style file, over ours")
    args = parser.parse_args(argv)
    if not args.root.is_dir():
        advice = "run `make figures` to train and draw, or `make redraw` to draw the committed results"
        print(f"error: There is no folder {args.root}: {advice}.", file=sys.stderr)
        return 2
    try:
        plots = [figures()[name] for name in names or figures()]
    except YamlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    code = 0
    for plot in plots:
        try:
            make(plot, args.root, args.out, args.partial, args.style, args.beside)
        except Problem as problem:
            print(f"error: {problem}", file=sys.stderr)
            code = 2
    return code


def make(
    plot: Plot, root: Path, out: Path, partial: bool = False, style: Path | None = None, beside: Path | None = None
) -> None:
    """One figure, from the folder of runs to its PNG, PDF and two CSV tables."""
    arms = read_arms(plot, root, partial)
    smoke = root.resolve().name == "smoke" or any(run.smoke for runs in arms.values() for run in runs)
    steps, finals = steps_table(plot, arms), final_table(arms)
    try:
        others = (str(beside), read_there(plot, beside)) if beside else None
        figure = draw(plot, arms, smoke, style, others)
    except (OSError, ValueError) as error:
        if style is None:
            raise
        raise Problem(f"{style} is no style that matplotlib can read: {error}.") from error
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as folder:
            new = Path(folder)
            save(figure, new, plot.name)
            steps.to_csv(new / f"{plot.name}_steps.csv", index=False, lineterminator="\n")
            finals.to_csv(new / f"{plot.name}_final.csv", index=False, lineterminator="\n")
            for file in sorted(new.iterdir()):
                os.replace(file, out / file.name)
    except OSError as error:
        raise Problem(f"Cannot write into {out}: {error.strerror or error}.") from error
    print(as_text(plot, steps, finals))
    print(f"{plot.name}: wrote {plot.name}.png, .pdf, _steps.csv and _final.csv into {out}\n")
