"""What is inside a wrapper: of torch.compile, DataParallel and DistributedDataParallel."""

from torch import nn


def eager(model: nn.Module) -> nn.Module:
    """The module itself inside wrappers of torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
