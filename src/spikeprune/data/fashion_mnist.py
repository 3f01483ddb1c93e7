"""`fashion-mnist`: clothes of 28x28 pixels."""

from spikeprune.data.dataset import Source
from spikeprune.data.formats.idx import read_idx
from spikeprune.data.registry import Facts, Request, register

_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@register(
    "fashion-mnist",
    facts=Facts((1, 28, 28), 10, train=60_000, test=10_000, names=_NAMES),
    cite="Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747",
    license="MIT",
    home="https://github.com/zalandoresearch/fashion-mnist",
    torchvision="FashionMNIST",
    checksums={
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
)
def read(request: Request) -> Source:
    """The files below `FashionMNIST/raw`, `fashion-mnist`, `raw` or the root itself."""
    return read_idx(request, folders=("FashionMNIST",))
