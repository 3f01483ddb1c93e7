"""Run the digits recipe with seed 0 and print the path of its report."""

from collections.abc import Sequence

from spikeprune.cli._arguments import Parser


def main(arguments: Sequence[str]) -> int:
    parser = Parser("demo", "Handwritten digits, dense against 95 % sparse. Takes a minute or two; needs no files.")
    parser.add_argument("--out", default="runs", help="folder that receives the run folder")
    options = parser.parse_args(arguments)

    from spikeprune.cli import run

    print("Training a spiking network on 8x8 digits twice: dense, and pruned to 95 % with regrowth.", flush=True)
    run.main(["digits", "--seed", "0", "--out", options.out])
    from spikeprune.lab.recipe import load
    from spikeprune.lab.train.folder import folder_of

    print(folder_of(load("digits", ["--seed", "0", "--out", options.out])).report)
    return 0
