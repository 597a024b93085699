"""AdamW whose state is divided among the ranks: ZeRO, stage 1 (Rajbhandari et al., arXiv:1910.02054, section 5.1).

Every rank has gradients of all parameters, of its rows of the batch. Their sum is scattered: each rank gets one share
of it, updates that share of the parameters, with the only m and v that there are of it, and the updated shares are
gathered. That moves as many bytes as summing the gradients for all, and N ranks keep 1/N of the state each.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minillama.backend import Array, get_array_module, to_host
from minillama.errors import MinillamaError
from minillama.training.adamw import AdamW, clip_factor, global_norm
from minillama.training.distributed import Communicator, gather, share
from minillama.training.threads import ONE_THREAD, Threads


class Optimizer:
    """AdamW for one rank or many: same calls, same results. One rank owns everything and copies nothing."""

    def __init__(
        self,
        comm: Communicator,
        params: Array,
        decayed: int,
        *,
        threads: Threads = ONE_THREAD,
        **settings: Any,
    ) -> None:
        """params: (P,) float, changed in place by `step`; rank 0's are what all ranks start from. decayed: how many of
        them, from the first, are decayed. settings: betas, eps and weight_decay of `AdamW`.
        """
        self.comm, self.params, self.threads = comm, params, threads
        self._mine = share(len(params), comm.rank, comm.size)
        own = params[self._mine]
        comm.broadcast(params)
        self.adamw = AdamW(own, min(max(decayed - self._mine.start, 0), len(own)), **settings)

    def step(self, grads: Array, lr: float, clip: float | None) -> float:
        """Update all parameters once by the sum of the ranks' gradients. Returns the norm of that sum.

        grads: (P,), of this rank's part of the loss; afterwards of no use. clip: the largest norm, None for any.
        A norm that is not finite is returned with nothing updated, on all ranks alike.
        """
        own = self.comm.reduce_scatter(grads)
        norm = math.hypot(*gather(self.comm, global_norm(own, self.threads)))  # the norm of the shares' norms
        if math.isfinite(norm):
            self.adamw.step(own, lr, clip_factor(norm, clip), self.threads)
            self.comm.all_gather(self.params)
        return norm

    def state(self) -> dict[str, np.ndarray]:
        """m and v (P,) of all ranks, on the host, and "steps", how many there have been: see `load_state`.

        To be called by all ranks. Rank 0 gets the state, the others an empty dict. With one rank on the CPU the arrays
        are the optimizer's own, not copies.
        """
        whole = {name: self._gathered(x) for name, x in (("m", self.adamw.m), ("v", self.adamw.v))}
        return {} if self.comm.rank > 0 else {**whole, "steps": np.array(self.adamw.steps)}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` returned, with any number of ranks. All ranks come with the whole of it.

        Raises MinillamaError where it is of other parameters.
        """
        for name, x in (("m", self.adamw.m), ("v", self.adamw.v)):
            if state[name].shape != self.params.shape or state[name].dtype != self.params.dtype:
                raise MinillamaError(
                    f"optimizer state {name}: expected {self.params.shape} {self.params.dtype}, "
                    f"found {state[name].shape} {state[name].dtype}"
                )
            x[...] = get_array_module(x).asarray(state[name][self._mine])
        self.adamw.steps = int(state["steps"])

    def _gathered(self, own: Array) -> np.ndarray:
        """The whole, on the host, of which each rank has the share `own`."""
        if self.comm.size == 1:
            return to_host(own)
        whole = np.empty(self.params.shape, self.params.dtype)
        whole[self._mine] = to_host(own)
        return self.comm.all_gather(whole)
