"""`ssc`: the 35 words of Speech Commands, as spikes of an artificial cochlea with 700 channels."""

from spikeprune.data.dataset import Source
from spikeprune.data.formats.cochlea import read_cochlea
from spikeprune.data.registry import Facts, Request, register


@register(
    "ssc",
    # Numbers and no names of constants: `spikeprune list` reads them from this text.
    facts=Facts((700, 1, 1), 35, 75_466, 20_382, time_first=True),
    cite="Cramer et al. 2022, IEEE TNNLS 33(7):2744",
    license="CC BY 4.0",
    home="https://zenkelab.org/datasets/",
)
def read(request: Request) -> Source:
    """`ssc_train.h5`, `ssc_valid.h5` and `ssc_test.h5`, packed (.gz) or not, as spike counts [T, N, 700, 1, 1].

    The reader was tested on small files in this layout, not on the published ones.
    """
    train, validation, test = (
        read_cochlea("ssc", f"ssc_{part}", request.root, request.T, ("SSC", "ssc", "events/SSC"))
        for part in ("train", "valid", "test")
    )
    return Source(
        train,
        test,
        request.facts.labels,
        validation=validation,
        scale=1.0,
        mean=(0.0,),
        std=(1.0,),
        notes=request.facts.absent(len(train), len(test)),
    )
