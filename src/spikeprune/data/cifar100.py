"""`cifar100`: photographs of 32x32 pixels in 100 classes."""

from spikeprune.data.dataset import Source
from spikeprune.data.formats.cifar import CifarLayout, read_cifar
from spikeprune.data.registry import Facts, Request, register

_LAYOUT = CifarLayout(
    folders=("cifar100", "CIFAR100", "cifar-100"),
    batch_folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    batches=("train", "test"),
    meta="meta",
    labels_key="fine_labels",
    names_key="fine_label_names",
    sheets=("train_1", "train_2", "train_3", "train_4", "train_5", "test"),
    sheet_labels="fine",
)


@register(
    "cifar100",
    facts=Facts((3, 32, 32), 100, train=50_000, test=10_000),
    cite="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
    license="not stated",
    home="https://www.cs.toronto.edu/~kriz/cifar.html",
    torchvision="CIFAR100",
    checksums={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
)
def read(request: Request) -> Source:
    """Batches, their archive or sheets. The names of the classes come from the files."""
    return read_cifar(request, _LAYOUT)
