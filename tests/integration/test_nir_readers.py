"""Files that go to NIR are read by other frameworks, fed as the guide says."""

import numpy as np
import pytest
import torch

nir = pytest.importorskip("nir")
pytest.importorskip("norse")
pytest.importorskip("snntorch")
pytest.importorskip("spikingjelly")

import nir_readers  # noqa: E402
from gallery.nets import ENTRIES  # noqa: E402


@pytest.fixture(scope="module")
def made():
    found = nir_readers.files(ENTRIES["sew add"])
    assert found is not None
    assert found[2].std() > 0.05
    return found


@pytest.mark.parametrize("reader", list(nir_readers.READERS))
def test_every_reader_gives_the_network_s_output(made, reader):
    assert nir_readers.read(made[0], reader, *made[1:]) == "ok"


def test_another_output_is_no_ok(made):
    content, frames, wanted = made
    assert nir_readers.read(content, "SpikingJelly", frames, wanted.roll(1, 0)) == "the output differs"


def test_snntorch_keeps_potentials_so_each_sample_has_an_import_of_its_own(made):
    content, frames = made[0], made[1][:, :2]
    net = nir_readers.snntorch(nir_readers.graph_of(content)).eval()
    with torch.no_grad():
        kept = torch.stack([nir_readers.run(net, sample) for sample in frames.unbind(1)], 1)
        apart = nir_readers.outputs(content, "snnTorch", frames)
    torch.testing.assert_close(kept[:, 0], apart[:, 0])
    assert not torch.allclose(kept[:, 1:], apart[:, 1:], atol=1e-3)


@pytest.mark.filterwarnings("ignore:nirtorch.load is being deprecated:DeprecationWarning")
def test_a_node_that_norse_leaves_out_is_told():
    graph = nir.NIRGraph(
        {
            "input": nir.Input({"input": np.array([2, 4, 4])}),
            "a": nir.Linear(np.eye(4)),
            "pool": nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
            "b": nir.Linear(np.eye(2)),
            "output": nir.Output({"output": np.array([2, 2, 2])}),
        },
        [("input", "a"), ("a", "pool"), ("pool", "b"), ("b", "output")],
        type_check=False,
    )
    with pytest.raises(ValueError, match="leaves out AvgPool2d without an error"):
        nir_readers.norse(graph)
