"""Which engine runs which layer, and in what order: neighbouring native layers become one program."""

from dataclasses import dataclass, field

from torch import Tensor

from spikeprune.runtime.compile.network import LoweredLayer
from spikeprune.runtime.compile.program import Program


@dataclass
class DenseStage:
    """A layer that PyTorch computes."""

    layer: LoweredLayer
    static: bool

    def __post_init__(self) -> None:
        self.runner = self.layer.op.runner(self.layer, self.static)

    def run(self, values: dict[int, Tensor], T: int, N: int, threads: int) -> None:
        values[self.layer.output] = self.runner([values[i] for i in self.layer.inputs], T)


@dataclass
class NativeStage:
    """Neighbouring native layers; `shapes` are those of the values that go to PyTorch."""

    program: Program
    shapes: dict[int, tuple[int, ...]]

    def run(self, values: dict[int, Tensor], T: int, N: int, threads: int) -> None:
        self.program.run(values, T, N, threads)
        for value, shape in self.shapes.items():
            if len(shape) == 1:
                values[value] = values[value].view(T, N, *shape)


@dataclass
class EngineSchedule:
    """Stages in order. `notes`: place of a layer -> its engine in words."""

    stages: list[DenseStage | NativeStage] = field(default_factory=list[DenseStage | NativeStage])
    notes: dict[int, str] = field(default_factory=dict[int, str])

    def run(self, x: Tensor, T: int, N: int, threads: int) -> dict[int, Tensor]:
        values = {0: x}
        for stage in self.stages:
            stage.run(values, T, N, threads)
        return values
