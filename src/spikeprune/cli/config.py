"""Print the complete recipe as YAML, with every key; the output is a recipe itself."""

from collections.abc import Sequence

from spikeprune.core.errors import InvalidValue

_HELP = """usage: spikeprune config RECIPE [--key value ...]

Prints every key of a recipe with its value, those of its method included,
after the overrides. Saved to a file, the output is a recipe that leads to the
same run. `spikeprune run --help` says what each key means.

examples:
  spikeprune config digits
  spikeprune config cifar10 --sparsity 0.95 > mine.yaml
"""


def main(arguments: Sequence[str]) -> int:
    import yaml

    from spikeprune.lab.recipe import complete, load

    words = list(arguments)
    if not words or "--help" in words or words[0] == "-h":
        print(_HELP)
        if words:
            return 0
        raise InvalidValue("config needs a recipe: `spikeprune config digits`; see `spikeprune list recipes`")
    recipe = load(words[0], words[1:])
    print(yaml.safe_dump(complete(recipe), sort_keys=False, allow_unicode=True), end="")
    return 0
