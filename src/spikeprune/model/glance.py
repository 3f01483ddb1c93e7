"""A look at the first forward, for methods that need no trace: is every weight used as it is stored?"""

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import nn

from spikeprune.core.errors import InvalidValue
from spikeprune.model.adapter import Adapter
from spikeprune.model.discover import Discovered
from spikeprune.model.hooks import OwnHook
from spikeprune.model.trace import Graph, trace
from spikeprune.model.weights import layer_modules, stored_weight


def refuse_computed(graph: Graph, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuses weights that the forward computes others from in which a pruned 0 does not stay.

    Raises: InvalidValue naming them.
    """
    uses = [(node.weight, node.use) for node in graph.nodes] + [(name, use) for name, (_, use) in graph.inner.items()]
    names = list(dict.fromkeys(n for n, use in uses if n in parameters and use is not None and not use.keeps))
    if names:
        raise InvalidValue(
            f"{', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''}: the forward computes another "
            f"weight from the stored one, and a pruned 0 does not stay 0 in it; pass exclude={names[:3]}, or use "
            "the stored weight itself"
        )


@final
class Glance:
    """Watches one forward. Only where some layer is not called itself the model is traced, to see how it is used.

    Args:
        refuse: is told what is wrong, if anything is.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter | None,
        parameters: Mapping[str, nn.Parameter],
        refuse: Callable[[InvalidValue], None],
    ) -> None:
        self.model, self.adapter, self.parameters, self.refuse = model, adapter, parameters, refuse
        own = {id(p) for p in parameters.values()}
        layers = [m for m in layer_modules(model).values() if id(stored_weight(m)) in own]
        self._uncalled = {id(layer) for layer in layers}
        self._handles: list[Any] = [layer.register_forward_pre_hook(OwnHook(self._called)) for layer in layers]
        self._handles.append(model.register_forward_hook(OwnHook(self._ended), with_kwargs=True))

    def _called(self, layer: nn.Module, _: tuple[Any, ...]) -> None:
        self._uncalled.discard(id(layer))

    def _ended(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: Any) -> None:
        self.remove()
        if not self._uncalled or torch.compiler.is_compiling():
            return
        try:
            graph = trace(self.model, *args, adapter=self.adapter or Discovered(), keywords=kwargs)
        except Exception:
            return  # only a look: a method that needs the trace says what is wrong
        try:
            refuse_computed(graph, self.parameters)
        except InvalidValue as error:
            self.refuse(error)

    def remove(self) -> None:
        """Takes every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
