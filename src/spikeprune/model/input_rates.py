"""The share of non-zero inputs of every layer, measured while the user's model runs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from spikeprune.model.arguments import Arguments, on_call
from spikeprune.model.weights import stored_weight


class InputRates:
    """Hooks that measure the share of non-zero inputs of every Conv and Linear layer, per input channel."""

    def __init__(self, model: nn.Module) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}
        names = {id(p): n for n, p in model.named_parameters()}
        self._handles = [
            on_call(module, self._watch(names[id(stored_weight(module))]))
            for module in model.modules()
            if isinstance(module, (_ConvNd, nn.Linear)) and id(stored_weight(module)) in names
        ]

    def _watch(self, name: str) -> Callable[[nn.Module, Arguments], None]:
        def see(module: nn.Module, given: Arguments) -> None:
            # A trace that runs meanwhile must not take what is counted here for a part of the model.
            with torch.no_grad(), torch._C.DisableTorchFunction():
                x = given.first
                axis = -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)  # type: ignore[arg-type]
                active = (x != 0).double().movedim(axis, 0).flatten(1)
                if isinstance(module, _ConvNd) and module.groups > 1:
                    # A grouped weight [O, I / groups, ...] sees each of its inputs through every group: average.
                    active = active.view(module.groups, -1, active.shape[1]).mean(0)
                self._sums[name] = self._sums.get(name, 0) + active.sum(1)
                self._counts[name] = self._counts.get(name, 0.0) + active.shape[1]

        return see

    def remove(self) -> None:
        """Takes the hooks off; the rates stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def rates(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Parameter name -> share of non-zero inputs, [I]; `reduce` sums a tensor over ranks."""
        return {
            name: (reduce(total) / reduce(torch.tensor(self._counts[name], device=total.device))).float()
            for name, total in self._sums.items()
        }
