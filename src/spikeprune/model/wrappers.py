"""Finds the user's own module inside a wrapper. Masks and counts use the parameter names of that module."""

from torch import nn
from torch.optim.swa_utils import AveragedModel

from spikeprune.core.errors import InvalidValue

# These hand their call on to the module that they hold as `module`, and do nothing else to what it computes.
_HOLDERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_HOLDERS_BY_NAME = {"ModelEma", "ModelEmaV2", "ModelEmaV3"}  # timm's copies of averaged weights
_LIGHTNING = "LightningModule"


def eager(model: nn.Module) -> nn.Module:
    """The module inside wrappers of torch.compile, DataParallel, DDP, averaged (EMA) copies and Lightning.

    accelerate returns the module itself or one of these. A LightningModule stands for the one network that
    it holds, because its `training_step` calls that one and not the LightningModule's forward; where it holds none or
    several, it is taken as it is.

    Raises: InvalidValue for a model whose parameters are sharded over processes.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidValue(f"the model must be a torch.nn.Module, got {type(model).__name__}; give the network itself")
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and (isinstance(model, _HOLDERS) or type(model).__name__ in _HOLDERS_BY_NAME):
            inner = model.module
        if inner is None and any(base.__name__ == _LIGHTNING for base in type(model).__mro__):
            inner = _only_network(model)
        if not isinstance(inner, nn.Module):
            _check_whole(model)
            return model
        model = inner


def _only_network(model: nn.Module) -> nn.Module | None:
    """The one child that holds all of a module's parameters, None if there is no such child."""
    children = [child for child in model.children() if next(child.parameters(), None) is not None]
    own = next(model.parameters(recurse=False), None)
    return children[0] if len(children) == 1 and own is None else None


def _check_whole(model: nn.Module) -> None:
    sharded = next((n for n, p in model.named_parameters() if type(p).__name__ == "DTensor"), None)
    if type(model).__name__ == "FullyShardedDataParallel" or sharded is not None:
        raise InvalidValue(
            f"the parameters of {type(model).__name__} are sharded over processes (FSDP, DTensor), so no process sees "
            "a whole weight; use DistributedDataParallel, or call this on the model before it is sharded"
        )
