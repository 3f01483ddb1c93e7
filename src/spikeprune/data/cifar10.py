"""`cifar10`: photographs of 32x32 pixels in 10 classes."""

from spikeprune.data.dataset import Source
from spikeprune.data.formats.cifar import CifarLayout, read_cifar
from spikeprune.data.registry import Facts, Request, register

_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CHECKSUMS = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_LAYOUT = CifarLayout(
    folders=("cifar10", "CIFAR10", "cifar-10"),
    batch_folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    batches=tuple(_CHECKSUMS),
    meta="batches.meta",
    labels_key="labels",
    names_key="label_names",
    sheets=tuple(_CHECKSUMS),
    sheet_labels="labels",
)


@register(
    "cifar10",
    facts=Facts((3, 32, 32), 10, train=50_000, test=10_000, names=_NAMES),
    cite="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
    license="not stated",
    home="https://www.cs.toronto.edu/~kriz/cifar.html",
    torchvision="CIFAR10",
    checksums=_CHECKSUMS,
)
def read(request: Request) -> Source:
    """Batches, their archive or sheets."""
    return read_cifar(request, _LAYOUT)
