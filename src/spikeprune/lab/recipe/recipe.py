"""The names of this room under the path that they had before it was split. Import `spikeprune.lab.recipe` instead."""

from spikeprune.lab.recipe import *  # noqa: F403
