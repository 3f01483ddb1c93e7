"""`kmnist`: ten cursive Japanese characters (Kuzushiji) of 28x28 pixels."""

from spikeprune.data.dataset import Source
from spikeprune.data.formats.idx import read_idx
from spikeprune.data.registry import Facts, Request, register

_NAMES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


@register(
    "kmnist",
    facts=Facts((1, 28, 28), 10, train=60_000, test=10_000, names=_NAMES),
    cite="Clanuwat et al. 2018, Deep Learning for Classical Japanese Literature, arXiv:1812.01718",
    license="CC BY-SA 4.0",
    home="http://codh.rois.ac.jp/kmnist",
    torchvision="KMNIST",
    checksums={
        "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
        "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
        "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
        "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
    },
)
def read(request: Request) -> Source:
    """The files below `KMNIST/raw`, `kmnist`, `raw` or the root itself."""
    return read_idx(request, folders=("KMNIST",))
