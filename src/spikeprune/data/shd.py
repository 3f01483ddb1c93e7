"""`shd`: spoken digits in English and German, as spikes of an artificial cochlea with 700 channels."""

from spikeprune.data.dataset import Source
from spikeprune.data.formats.cochlea import read_cochlea
from spikeprune.data.registry import Facts, Request, register

_WORDS = "zero one two three four five six seven eight nine"
_WORTE = "null eins zwei drei vier fünf sechs sieben acht neun"
_NAMES = (*_WORDS.split(), *_WORTE.split())


@register(
    "shd",
    # Numbers and no names of constants: `spikeprune list` reads them from this text.
    facts=Facts((700, 1, 1), 20, 8_156, 2_264, _NAMES, time_first=True),
    cite="Cramer et al. 2022, IEEE TNNLS 33(7):2744",
    license="CC BY 4.0",
    home="https://zenkelab.org/datasets/",
)
def read(request: Request) -> Source:
    """`shd_train.h5` and `shd_test.h5`, packed (.gz) or not, as spike counts [T, N, 700, 1, 1] used as they are.

    The reader was tested on small files in this layout, not on the published ones.
    """
    train, test = (
        read_cochlea("shd", f"shd_{part}", request.root, request.T, ("SHD", "shd", "events/SHD"))
        for part in ("train", "test")
    )
    notes = request.facts.absent(len(train), len(test))
    return Source(train, test, _NAMES, scale=1.0, mean=(0.0,), std=(1.0,), notes=notes)
