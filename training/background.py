"""Writing while training goes on: a thread writes a copy that was made in pinned memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree


class Background:
    """One job at a time, on a copy of tensors that training is about to overwrite.

    `start` waits for the job before; an error of a job is raised there, or by `wait`, whichever comes first.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._copies: dict[int, torch.Tensor] = {}  # pinned memory, kept: to get 187 MB of it takes longer than to fill

    def start(self, job: Callable[[Any], None], state: Any) -> None:
        """Call `job` with a copy of `state`, nested containers of tensors and plain values, in a thread."""
        self.wait()
        leaves, structure = pytree.tree_flatten(state)
        copy = pytree.tree_unflatten([self._copy(k, leaf) for k, leaf in enumerate(leaves)], structure)
        devices = {leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_cuda}
        arrived = [torch.cuda.current_stream(device).record_event() for device in devices]

        def work() -> None:
            try:
                for event in arrived:
                    event.synchronize()  # waits in this thread alone
                job(copy)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="background")
        self._thread.start()

    def wait(self) -> None:
        """Until the job is done; raises the error that ended it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _copy(self, number: int, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        leaf = leaf.detach()
        if not leaf.is_cuda:
            return leaf.clone()
        kept = self._copies.get(number)
        if kept is None or (kept.shape, kept.dtype, kept.stride()) != (leaf.shape, leaf.dtype, leaf.stride()):
            kept = self._copies[number] = torch.empty_like(leaf, device="cpu", pin_memory=True)
        # In the stream of training: done before the next step writes, which nobody waits for.
        return kept.copy_(leaf, non_blocking=True)
