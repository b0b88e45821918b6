"""Grow a model from the command line.

    python -m net2net explain timm:resnet50
    python -m net2net widen torchvision:resnet18 --weights r18.safetensors --factor 1.5 --out r18_wide.safetensors
    python -m net2net deepen timm:resnet18 --weights r18.pt --site 'layer1.*=3' --calibration images.npy --out deep
    python -m net2net verify torchvision:resnet18 --weights r18.safetensors --student r18_wide.safetensors

MODEL is timm:NAME, torchvision:NAME, or package.module:factory for a function or class of your own that returns a
model. A student is written as OUT.safetensors, with the record of its growth in the metadata, and OUT.json, with the
model's name and the versions as well. It can be grown again: --weights takes it. Nothing is downloaded but with
--pretrained.

Exit status: 0; 1 if `verify` finds another function; 2 if what was asked for cannot be done, and one sentence why.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import math
import os
import re
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

import net2net
from net2net import sources
from net2net.certificate import Certificate
from net2net.errors import DoesNotRun, GrowthError
from net2net.overview import Summary, costs
from net2net.sources import CommandError, Inputs

TOLERANCE = 1e-5


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message}; see {self.prog} --help")


def main(argv: list[str] | None = None) -> int:
    try:
        arguments = _parser().parse_args(argv)
        # What a factory or a forward pass prints is no part of the table or of the JSON.
        with contextlib.redirect_stdout(sys.stderr), sources.staying():
            status, text = arguments.run(arguments)
        print(text)
        if sys.stdout:  # None where it was closed
            sys.stdout.flush()
        return status
    except CommandError as error:
        _note(str(error))
        return 2
    except GrowthError as error:
        _note(_spelled(str(error)))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the table has seen enough, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a file that cannot be had, or a full disk behind the standard output
        _note(f"{error.filename or 'standard output'}: {error.strerror or error}")
        try:
            sys.stdout.flush()
        except OSError:  # Python tries again when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


def _spelled(text: str) -> str:
    """What the library says, with the options of the command line for its arguments."""
    for argument in ("calibration", "factor", "modules", "multiple_of", "new_head"):
        text = re.sub(rf"\b{argument}(=| names)", lambda found: f"--{found[0].rstrip('=').replace('_', '-')}", text)
    text = text.replace("choose one by key=", "choose one by --weights-key").replace(
        "key= takes", "--weights-key takes"
    )
    return text.replace("widths=", "--width").replace("widths names", "--width names")


def _parser() -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m net2net", description=__doc__, formatter_class=raw, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    def command(run: Any, what: str, *examples: str) -> Parser:
        lines = "\n".join(["example:" if len(examples) == 1 else "examples:", *(f"  {line}" for line in examples)])
        made = commands.add_parser(
            run.__name__, help=what, description=what, epilog=lines, formatter_class=raw, allow_abbrev=False
        )
        made.set_defaults(run=run, command=run.__name__)
        return made

    me = "python -m net2net"
    explained = command(
        explain, "list what can grow in a model, and what cannot and why", f"{me} explain timm:resnet50"
    )
    widened = command(
        widen,
        "make a model wider that computes the same function (Net2WiderNet)",
        f"{me} widen torchvision:resnet18 --weights r18.safetensors --factor 1.5 --out r18_wide",
        f"{me} widen timm:resnet50 --pretrained --width layer1.0.conv1=96 --out r50_wide",
        f"{me} widen my.models:small --model-arg depth=4 --input 1x28x28 --factor 2 --modules 'blocks.*'",
    )
    deepened = command(
        deepen,
        "make a model deeper that computes the same function (Net2DeeperNet)",
        f"{me} deepen timm:resnet18 --weights r18.pt --site 'layer1.*=3' --calibration images.npy --out r18_deep",
        f"{me} deepen timm:resnet18 --site 'layer2.1=1x3,3x1' --calibration random",
    )
    verified = command(
        verify,
        "rebuild a student from its record, load its weights, and compare it with its teacher",
        f"{me} verify torchvision:resnet18 --weights r18.safetensors --student r18_wide.safetensors",
    )
    growing = (widened, deepened)

    for made in (explained, *growing, verified):
        group = made.add_argument_group("the teacher" if made is not explained else "the model")
        group.add_argument("model", metavar="MODEL", help="timm:NAME, torchvision:NAME or package.module:factory")
        group.add_argument(
            "--model-arg",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            type=_key_value,
            help="an argument of its factory; VALUE as in Python or JSON, else text; can be repeated",
        )
        source = group.add_mutually_exclusive_group()
        source.add_argument(
            "--weights",
            type=_path,
            metavar="FILE",
            help="a .safetensors or .pt file, a student's too, or a folder of shards. Without: random initialisation "
            "by --seed",
        )
        source.add_argument("--pretrained", action="store_true", help="its published weights; may download them")
        group.add_argument(
            "--weights-key",
            metavar="KEY",
            help="which state dict in that file, e.g. ema or state_dict_ema, or how its names begin, e.g. model",
        )
        group = made.add_argument_group("what it is run on")
        group.add_argument(
            "--input",
            type=_shape,
            metavar="CxHxW",
            help="the shape of one example (default: what timm says, 3x224x224 for torchvision)",
        )
        group.add_argument("--batch", type=_count, default=2, metavar="N", help="number of examples (default: 2)")
        group.add_argument(
            "--inputs-from",
            type=_path,
            metavar="FILE",
            help="take the examples from a .safetensors, .npy or .pt file [N, …] instead of random numbers",
        )
        group.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
        seeds = "the maps, the noise, " if made is widened else ""
        whose = " (default: the student's)" if made is verified else " (default: 0)"
        group.add_argument(
            "--seed",
            type=_seed,
            default=None if made is verified else 0,
            help=f"of {seeds}random weights and random examples{whose}",
        )

    group = widened.add_argument_group("how far")
    group.add_argument("--factor", type=float, help="multiplies every width that can grow, e.g. 1.5")
    group.add_argument(
        "--modules",
        action="append",
        metavar="GLOB",
        help='restrict --factor to these modules ("*" stops at dots, "**" does not); can be repeated',
    )
    group.add_argument(
        "--width",
        action="append",
        default=[],
        metavar="LAYER=N",
        type=_width,
        help="instead of --factor: the new number of channels of a layer; can be repeated",
    )
    group.add_argument(
        "--multiple-of",
        type=_count,
        default=1,
        metavar="N",
        help="round the widths that --factor asks for up to a multiple, e.g. 8, which tensor cores are made for",
    )
    for made in growing:
        made.add_argument_group("another number of classes").add_argument(
            "--new-head",
            action="append",
            default=[],
            metavar="[LAYER=]N",
            type=_head,
            help="replace the layer that makes the outputs by one with N of them, initialised anew; can be repeated "
            "with LAYER",
        )
    group = widened.add_argument_group("with what")
    group.add_argument(
        "--noise",
        type=float,
        default=None,
        help="by which copies differ, as a fraction of each filter's standard deviation (default: 0.05; 0: for ever "
        "equal copies)",
    )
    group.add_argument(
        "--exact",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="put the noise where it cancels out (the default); --no-exact: where the paper has it, which moves the "
        "function",
    )
    group.add_argument(
        "--random-pad", action="store_true", help="the paper's baseline: pad with random weights; another function"
    )
    group = deepened.add_argument_group("what to insert")
    group.add_argument(
        "--site",
        action="append",
        required=True,
        metavar="GLOB=KERNELS",
        type=_site,
        help="the kernels to insert after a module, e.g. 'layer1.*=3' or 'layer2.1=1x3,3x1'; can be repeated. "
        "`explain` lists the sites",
    )
    group.add_argument(
        "--calibration",
        metavar="PATH|random",
        help="training images as the model takes them, to measure batch-norm statistics on: a .safetensors, .npy or "
        ".pt file [N, C, H, W], or a folder of them; or the word random, for noise. The examples are its first",
    )
    group.add_argument(
        "--calibration-batch", type=_count, default=32, metavar="N", help="images per forward pass (default: 32)"
    )
    group = verified.add_argument_group("the student")
    group.add_argument("--student", type=_path, required=True, metavar="FILE", help="what widen or deepen wrote")
    group.add_argument(
        "--tolerance",
        type=_tolerance,
        default=TOLERANCE,
        help="largest relative error that passes (default: %(default)g: rounding of float32 weights stays below)",
    )
    for made in (explained, *growing, verified):
        group = made.add_argument_group("output")
        if made in growing:
            group.add_argument(
                "--out", type=_path, help="OUT.safetensors and OUT.json are written; without: only the table"
            )
            group.add_argument("--force", action="store_true", help="replace them where they exist")
        if made is not explained:
            group.add_argument("--all", action="store_true", help="every row, however many")
        group.add_argument("--json", action="store_true", help="as JSON instead of a table")
    return parser


def _path(text: str) -> Path:
    """With `~` and `$VAR` replaced: the shell leaves `--out=~/x` as it is."""
    if not text:  # of a variable that is not set
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return Path(os.path.expandvars(os.path.expanduser(text)))


def _pair(text: str, wanted: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not (key and sign and value):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    return key, value


def _key_value(text: str) -> tuple[str, Any]:
    key, value = _pair(text, "KEY=VALUE, e.g. num_classes=10")
    for parse in (json.loads, ast.literal_eval):
        try:
            return key, parse(value)
        except (ValueError, SyntaxError):
            continue
    return key, value


def _width(text: str) -> tuple[str, int]:
    wanted = "LAYER=N with a whole number N, e.g. layer1.0.conv1=96"
    layer, value = _pair(text, wanted)
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    return layer, int(value)


def _head(text: str) -> tuple[str, int]:
    """A layer and its number of outputs; "" for the only one that makes them."""
    layer, sign, number = text.rpartition("=")
    if not number.isdecimal() or not int(number) or (sign and not layer):
        raise argparse.ArgumentTypeError(f"expected a number of classes, e.g. 10 or fc=10, got {text!r}")
    return layer, int(number)


def _new_head(args: argparse.Namespace) -> Any:
    heads = _once(args.new_head, "--new-head")
    if "" in heads and len(heads) > 1:
        raise CommandError("--new-head N is for a model with one classifier: name the layer of each, e.g. fc=10")
    return heads.get("", heads or None)


def _site(text: str) -> tuple[str, list[Any]]:
    """Kernels are "3", "1x3" or a word that `deepen` knows, separated by commas; or all of them are a list in JSON."""
    wanted = "GLOB=KERNELS, e.g. 'layer1.*=3' or 'layer2.1=1x3,3x1'"
    glob, value = _pair(text, wanted)
    try:
        if value.startswith("["):
            return glob, json.loads(value)
        return glob, [_kernel(part.strip()) for part in value.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None


def _kernel(text: str) -> Any:
    if text.isidentifier():
        return text
    sizes = tuple(int(size) for size in text.split("x"))
    return sizes[0] if len(sizes) == 1 else sizes


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.lower().split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"expected the shape of one example, e.g. 3x224x224, got {text!r}")
    if math.prod(map(int, sizes)) >= 2**31:
        raise argparse.ArgumentTypeError(f"expected the shape of one example, e.g. 3x224x224, not of billions: {text}")
    return tuple(map(int, sizes))


def _seed(text: str) -> int:
    try:
        if -(2**63) <= int(text) < 2**63:
            return int(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a whole number of at most 64 bits, got {text!r}")


def _tolerance(text: str) -> float:
    try:
        if float(text) >= 0:  # NaN is not
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number of at least 0, e.g. 1e-5, got {text!r}")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


# Each command returns its exit status and what is printed.


def explain(args: argparse.Namespace) -> tuple[int, str]:
    _, model, _, examples = _teacher(args)
    found = net2net.explain(model, examples)
    if args.json:
        spaces = [s._asdict() for s in found.spaces]
        return 0, _as_json({"model": args.model, "spaces": spaces, "sites": found.sites})
    return 0, str(found)


def widen(args: argparse.Namespace) -> tuple[int, str]:
    widths = _once(args.width, "--width")
    if (args.factor is None) == (not widths):
        raise CommandError("say how far to widen by either --factor or --width, e.g. --factor 1.5")
    if widths and args.modules:
        raise CommandError("--modules restricts --factor; --width names its layers itself")
    if args.random_pad and args.noise is not None:
        raise CommandError("--noise is for copies, and --random-pad makes none: give one of them")
    if args.random_pad and args.exact is not None:
        raise CommandError("--exact and --no-exact are about the noise on copies, and --random-pad makes none")
    options: dict[str, Any] = {"widths": widths or None, "modules": args.modules, "seed": args.seed}
    options |= {"multiple_of": args.multiple_of, "new_head": _new_head(args)}
    out = _writable(args)
    inputs, teacher, weights, examples = _teacher(args)
    with sources.attempt("cannot widen this"):
        if args.random_pad:
            student = net2net.random_pad(teacher, examples, args.factor, **options)
        else:
            noise = {} if args.noise is None else {"noise": args.noise}
            student = net2net.widen(teacher, examples, args.factor, exact=args.exact is not False, **noise, **options)
    return _finish(args, out, inputs, teacher, student, weights, examples)


def deepen(args: argparse.Namespace) -> tuple[int, str]:
    sites, new_head = _once(args.site, "--site"), _new_head(args)
    out = _writable(args)
    files = None
    if args.calibration not in (None, "random"):
        files = sources.calibration_files(_path(args.calibration))
        next(sources.calibration_batches(files, 1))  # what is wrong with it, before the long work
        args.inputs_from = args.inputs_from or (files[0] if args.input is None else None)
    inputs, teacher, weights, examples = _teacher(args)
    batches: Any = [examples] if args.calibration else None
    if files:
        batches = sources.calibration_batches(files, args.calibration_batch, teacher)
    with sources.attempt("cannot deepen this"):
        student = net2net.deepen(teacher, examples, sites, batches, new_head=new_head, seed=args.seed)
    if args.calibration == "random" and _new_norms(teacher, student):
        _note(
            "warning: --calibration random measured the batch-norm statistics of the new layers on noise: the student "
            "is its teacher in evaluation mode, but not on images in training mode; measure them on training images "
            "if it is to be trained"
        )
    return _finish(args, out, inputs, teacher, student, weights, examples)


def verify(args: argparse.Namespace) -> tuple[int, str]:
    state = sources.read_weights(args.student)
    record = sources.read_record(args.student)
    if not record["history"]:
        raise CommandError(
            f"{args.student} has no record of a growth, neither in its metadata nor in "
            f"{args.student.with_suffix('.json')}: net2net writes both"
        )
    # What the record says is only compared with the command line: a file does not choose what is imported or called.
    with sources.attempt(f"cannot read the record of {args.student}"):
        model = dict(record.get("model") or {})
        was, own = dict(model.get("weights") or {}), dict(model.get("args") or {})
    if model.get("name") == args.model:
        if own != _model_args(args):
            were = " ".join(f"--model-arg {key}={json.dumps(value)}" for key, value in own.items())
            raise CommandError(f"the student was grown from {args.model} with {were or 'no --model-arg'}: say the same")
        if args.weights is None and not args.pretrained and "seed" not in was:
            which = f"--weights with {was['file']}" if "file" in was else "--pretrained"
            raise CommandError(f"the student was grown from weights, not from random ones: give {which}")
    seed = was.get("seed", 0)
    args.seed = args.seed if args.seed is not None else seed if isinstance(seed, int) else 0
    shape = record.get("input")
    given = args.input or args.inputs_from
    if not given and isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape):
        args.input = tuple(shape)
    inputs, teacher, weights, examples = _teacher(args)
    done = net2net.history(teacher)
    if record["history"][: len(done)] != done:
        raise CommandError(f"{args.student} was not grown from {args.weights}: their records begin differently")
    student = sources.regrow(record["history"], teacher, args.student)
    sources.fill(student, state, args.student)
    report = _report(args, inputs, teacher, student.eval(), weights, examples)
    # New batch norms undo the statistics that they were calibrated on, not those of any batch.
    counted = [c for c in report["certificates"] if c["mode"] == "eval" or not _new_norms(teacher, student)]
    passed = all(c["relative"] <= args.tolerance for c in counted if "relative" in c)  # NaN is not
    report |= {"tolerance": args.tolerance, "passed": passed}
    if not report["passed"] and "sha256" in was and was["sha256"] != weights.get("sha256"):
        _note(f"{args.weights} is not the file that the student was grown from, which was called {was.get('file')}")
    return 0 if report["passed"] else 1, _shown(args, report)


def _teacher(args: argparse.Namespace) -> tuple[Inputs, nn.Module, dict[str, Any], torch.Tensor]:
    try:
        device = torch.device(args.device)
    except RuntimeError:
        raise CommandError(f"there is no device {args.device!r}: expected cpu or cuda") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CommandError(f"there is no device {args.device!r}: PyTorch finds {torch.cuda.device_count()} of them")
    if args.input and args.inputs_from:
        raise CommandError("--inputs-from has examples of a shape of their own: leave out --input")
    if args.weights_key is not None and args.weights is None:
        raise CommandError("--weights-key says which weights of a file: give --weights, too")
    inputs = Inputs(args.input, args.batch, args.inputs_from, args.seed, args.model)
    arguments = _once(args.model_arg, "--model-arg")
    loaded = sources.load(
        args.model,
        arguments,
        weights=args.weights,
        key=args.weights_key,
        pretrained=args.pretrained,
        seed=args.seed,
    )
    for note in loaded.notes:
        _note(_spelled(note))
    with sources.attempt(f"cannot move {args.model} to --device {args.device}"):
        model = loaded.model.to(device).eval()
    return inputs, model, loaded.weights, inputs.of(model)


def _once(pairs: list[tuple[str, Any]], option: str) -> dict[str, Any]:
    for key, times in Counter(key for key, _ in pairs).items():
        if times > 1:
            raise CommandError(f"{option} {key} is given {times} times")
    return dict(pairs)


def _model_args(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the factory as a record has them."""
    return json.loads(json.dumps(_once(args.model_arg, "--model-arg"), default=str))


def _writable(args: argparse.Namespace) -> Path | None:
    """Where the student goes; everything that can be wrong with it is found before the work begins."""
    if args.out is None:
        return None
    if args.out.suffix in (".pt", ".pth", ".bin", ".ckpt", ".json"):
        raise CommandError(f"--out {args.out}: students are written as .safetensors")
    if args.out.is_dir() or args.out.name in ("", ".."):
        raise CommandError(f"--out {args.out} is a folder: name a file in it, e.g. {args.out / 'student'}")
    out = args.out if args.out.suffix == ".safetensors" else args.out.with_name(f"{args.out.name}.safetensors")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise CommandError(f"--out {args.out}: {out.parent} is not a folder that can be written to")
    if args.weights is not None and out.resolve() == args.weights.resolve():
        raise CommandError(f"--out {args.out} would replace the teacher's own weights")
    for file in (out, out.with_suffix(".json")):
        if file.is_dir():
            raise CommandError(f"--out {args.out}: {file} is a folder")
        if os.path.lexists(file) and not args.force:
            raise CommandError(f"{file} exists: --force replaces it")
    return out


def _finish(
    args: argparse.Namespace,
    out: Path | None,
    inputs: Inputs,
    teacher: nn.Module,
    student: nn.Module,
    weights: dict[str, Any],
    examples: torch.Tensor,
) -> tuple[int, str]:
    record = {
        "model": {"name": args.model, "args": _model_args(args), "weights": weights},
        "input": list(examples.shape[1:]),
        "history": net2net.history(student),
        "versions": _versions(args.model),
    }
    # Before the certificates, which take longer than all else.
    files = sources.write_student(out, student, record) if out else []
    report = _report(args, inputs, teacher, student, weights, examples)
    return 0, _shown(args, {**report, "files": [str(file) for file in files]})


def _versions(spec: str) -> dict[str, str]:
    found = {}
    for name in ("net2net", "torch", spec.partition(":")[0].partition(".")[0]):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _report(
    args: argparse.Namespace,
    inputs: Inputs,
    teacher: nn.Module,
    student: nn.Module,
    weights: dict[str, Any],
    examples: torch.Tensor,
) -> dict[str, Any]:
    """All that the table says, as plain data."""
    certificates: list[dict[str, Any]] = []
    compared = _with_old_head(teacher, student)
    for train in (False, True):
        try:
            with sources.attempt(f"the models do not run on {inputs}"):
                certificates.append(net2net.verify(teacher, compared, examples, train=train)._asdict())
        except (CommandError, DoesNotRun) as error:
            if not train:
                raise
            certificates.append({"mode": "train", "failed": str(error)})  # e.g. batch norm of a single value
    found = net2net.summary(student, examples, teacher)
    return {
        "model": args.model,
        "weights": weights,
        "inputs": str(inputs),
        "input": list(examples.shape[1:]),
        "parameters": list(found.parameters),
        "macs": list(found.macs),
        "certificates": certificates,
        "new_batch_norms": _new_norms(teacher, student),
        "grew": [*found.grew, *found.inserted],
        "stayed": [{**row, "reason": _spelled(row["reason"])} for row in found.stayed],
        "numbers": found.numbers,
        "unclear": found.unclear,
        "heads": found.heads,
    }


def _with_old_head(teacher: nn.Module, student: nn.Module) -> nn.Module:
    """The student with its teacher's classifier, grown along, in place of a new one: what can be compared."""
    entries = net2net.history(student)[len(net2net.history(teacher)) :]
    heads = tuple(f"{name}." for entry in entries if entry["op"] == "new_head" for name in entry["heads"])
    if not heads:
        return student
    old = net2net.replay([entry for entry in entries if entry["op"] != "new_head"], teacher)
    kept = {name: value for name, value in student.state_dict().items() if not name.startswith(heads)}
    old.load_state_dict({**old.state_dict(), **kept})
    return old


def _new_norms(teacher: nn.Module, student: nn.Module) -> int:
    ours, theirs = (
        sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()) for model in (student, teacher)
    )
    return ours - theirs


def _shown(args: argparse.Namespace, report: dict[str, Any]) -> str:
    if args.json:
        return _as_json(report)
    weights = report["weights"]
    source = weights.get("file") or ("pretrained weights" if "pretrained" in weights else None)
    lines = [f"{report['model']}, {source or 'random initialisation (seed {seed})'.format(**weights)}"]
    lines += [f"run on {report['inputs']}, {'x'.join(map(str, report['input']))} each", ""]
    lines += [*costs(report["parameters"], report["macs"]), ""]
    for certificate in report["certificates"]:
        if "failed" in certificate:
            lines.append(f"no certificate in training mode: {certificate['failed']}")
        else:
            norms = certificate["mode"] == "train" and report["new_batch_norms"]
            lines.append(
                f"{Certificate(**certificate)}" + (", exact on the whole calibration batch alone" * bool(norms))
            )
    if report["heads"]:
        lines.append("compared with the teacher's own classifier in place of the new one")
    grew = _summary(report).growth(args.all, ": --all")
    lines += [*grew, ""] if grew else []
    lines += [f"wrote {file}" for file in report.get("files", ())]
    if "files" in report and not report["files"]:
        lines.append("nothing was written: no --out")
    if "passed" in report:
        passed = "passed" if report["passed"] else "FAILED"
        lines.append(f"{passed}: tolerance {report['tolerance']:g} (relative error)")
    return "\n".join(lines)


def _summary(report: dict[str, Any]) -> Summary:
    widened, deepened = ([row for row in report["grew"] if key in row] for key in ("made_by", "after"))
    rest = (report["parameters"], report["macs"], widened, deepened, report["heads"], report["stayed"])
    return Summary(*rest, report["numbers"], report["unclear"])


def _as_json(content: Any) -> str:
    def plain(value: Any) -> Any:  # JSON has no NaN and no infinity
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(content), indent=1)


def _note(text: str) -> None:
    print(f"net2net: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
