"""The frame that every zoo network shares: images or sequences in, logits per step out.

T time steps, N batch, C channels, H/W space.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal

from spikingjelly.activation_based import base, functional
from torch import Tensor, nn

from spikeprune.core.errors import InvalidValue
from spikeprune.host.quiet import leave_out_triton

leave_out_triton()


class SpikingNet(nn.Module, base.StepModule):
    """stem -> body -> head, with images repeated over time where the network wants it.

    In step mode "m" (the default) it takes images [N, C, H, W] or sequences [T, N, C, H, W] and returns logits
    [T, N, classes]. In step mode "s" it takes one step [N, C, H, W] and returns [N, classes]. The caller resets the
    membrane state between batches (`spikingjelly.activation_based.functional.reset_net`).

    Args:
        stem: what may run once per image: it holds no state.
        body: all layers with state, ending in features [T, N, features].
        head: the classifier.
        T: steps over which an image is repeated; a sequence brings its own length.
        image_shape: (C, H, W) of the input; anything else is refused.
        repeat: "image" repeats the image and runs the stem at every step; "stem" runs the stem once per image and
            repeats what comes out of it, which is the same function and costs T times less.
        readout: the entry of zoo/readout.py's `LOSSES` to train with.
    """

    def __init__(
        self,
        stem: nn.Module,
        body: nn.Module,
        head: nn.Module,
        *,
        T: int,
        image_shape: tuple[int, int, int],
        repeat: Literal["image", "stem"],
        readout: str,
    ):
        super().__init__()
        self.stem = stem
        self.body = body
        self.head = head
        self.T = T
        self.image_shape = image_shape
        self.repeat = repeat
        self.readout = readout
        self.step_mode = "m"
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        image_steps = (4,) if self.step_mode == "s" else (4, 5)
        if x.dim() not in image_steps or tuple(x.shape[-3:]) != self.image_shape:
            c, h, w = self.image_shape
            wanted = f"[N, {c}, {h}, {w}]" + ("" if self.step_mode == "s" else f" or [T, N, {c}, {h}, {w}]")
            raise InvalidValue(f"this network takes {wanted}, got {list(x.shape)}; build it with another size for that")
        if self.step_mode == "s":
            with _one_value(self, len(x)):
                return self.head(self.body(self.stem(x)))
        still = x.dim() == 4
        if still:
            # A sequence of one step, so that the stem needs no second path for images.
            x = x.unsqueeze(0)
        if still and self.repeat == "image":
            x = x.expand(self.T, *x.shape[1:])
        # Read before the stem: `sp.fuse` leaves the stem's result open until its neuron asks for it.
        steps, samples = x.shape[0], x.shape[1]
        with _one_value(self.stem, steps * samples):
            x = self.stem(x)
        if still and self.repeat == "stem":
            steps = self.T
            x = x.expand(self.T, *x.shape[1:])
        with _one_value(self.body, steps * samples):
            return self.head(self.body(x))

    def extra_repr(self) -> str:
        return f"T={self.T}, image_shape={self.image_shape}, repeat={self.repeat!r}, readout={self.readout!r}"


@contextlib.contextmanager
def _one_value(part: nn.Module, samples: int) -> Iterator[None]:
    """In training, a batch of one sample has no variance, so BatchNorm1d uses its running statistics for it.

    An epoch whose last batch holds one image would end in an error of PyTorch otherwise. Maps of more than one position
    have a variance and are left alone.
    """
    norms = [m for m in part.modules() if isinstance(m, nn.BatchNorm1d) and m.training] if samples == 1 else []
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True
