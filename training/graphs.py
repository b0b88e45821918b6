"""A pass as one CUDA graph: the host launches it as a whole, not its thousands of kernels one after the other.

Eager, a pass of a network of a hundred convolutions keeps the host busy for several times as long as the GPU. Captured,
it costs the host one call, whether it was compiled or not, and computes the same numbers by the same kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import nn

from training.errors import RunError

Pass = Callable[[torch.Tensor, torch.Tensor], None]
WARM_UP = 3  # passes of a size before it is captured: cuDNN chooses its kernels, torch.compile compiles


class Replayed:
    """Calls `run(images, labels)`: the first times as it is, then by replaying what was captured of it.

    All that a pass leaves behind has to stay where it is: gradients, sums, batch-norm statistics, written in place.
    """

    def __init__(self, run: Pass, device: torch.device):
        self.run, self.device = run, device
        # The warm-up has the stream of the capture: backward passes go on in the streams of their forward ones.
        self.stream = torch.cuda.Stream(device)
        self.seen: Counter[torch.Size] = Counter()
        self.batches: dict[torch.Size, tuple[torch.Tensor, torch.Tensor]] = {}  # what every pass of a size reads
        self.replay: dict[torch.Size, Callable[[], None]] = {}

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        size = images.shape
        if size not in self.batches:
            self.batches[size] = torch.empty_like(images), torch.empty_like(labels)
        for own, given in zip(self.batches[size], (images, labels), strict=True):
            own.copy_(given)
        self.seen[size] += 1
        if self.seen[size] <= WARM_UP:
            here = torch.cuda.current_stream(self.device)
            self.stream.wait_stream(here)
            with torch.cuda.stream(self.stream):
                self.run(*self.batches[size])
            here.wait_stream(self.stream)
            return
        if size not in self.replay:
            self.replay[size] = capture(self.run, *self.batches[size], self.stream)
        self.replay[size]()


def capture(run: Pass, images: torch.Tensor, labels: torch.Tensor, stream: torch.cuda.Stream) -> Callable[[], None]:
    """What does `run(images, labels)` again, on what these tensors then hold. Nothing is computed yet."""
    graph = torch.cuda.CUDAGraph()
    try:
        # Of this thread alone: others write checkpoints and pin batches meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            run(images, labels)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RunError(
            f"training.cuda_graphs: the training pass cannot be captured: {str(error).splitlines()[0]}; "
            "--set training.cuda_graphs=false goes on without, more slowly and with the same numbers"
        ) from error
    return graph.replay


def gradients_in_one(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Give each parameter a gradient of zeros that stays where it is; all of them as one tensor, their memory.

    Parameters are of one device and type, and each has its gradient in its own memory format.
    """
    parameters = [p for p in parameters if p.requires_grad]
    # Aligned as allocations are, which kernels take for granted where they load several numbers at once.
    sizes = [-(-p.numel() // 128) * 128 for p in parameters]
    flat = torch.zeros(sum(sizes), device=parameters[0].device, dtype=parameters[0].dtype)
    for parameter, part in zip(parameters, flat.split(sizes), strict=True):
        parameter.grad = part.as_strided(parameter.shape, parameter.stride(), part.storage_offset())
    return flat
