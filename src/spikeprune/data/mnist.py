"""`mnist`: handwritten digits of 28x28 pixels."""

import string

from spikeprune.data.dataset import Source
from spikeprune.data.formats.idx import read_idx
from spikeprune.data.registry import Facts, Request, register


@register(
    "mnist",
    facts=Facts((1, 28, 28), 10, train=60_000, test=10_000, names=tuple(string.digits)),
    cite="LeCun et al. 1998, Gradient-based learning applied to document recognition, Proceedings of the IEEE 86(11)",
    license="CC BY-SA 3.0",
    home="http://yann.lecun.com/exdb/mnist",
    torchvision="MNIST",
    checksums={
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
)
def read(request: Request) -> Source:
    """The files below `MNIST/raw`, `mnist`, `raw` or the root itself."""
    return read_idx(request, folders=("MNIST",))
