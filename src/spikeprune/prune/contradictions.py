"""A saved pruner state whose parts contradict each other: rounds beside its step, masks beside its last round."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from spikeprune.core.errors import InvalidValue
from spikeprune.core.mask import count
from spikeprune.record.round import Round

_TRY = "save the state anew, or pass strict=False to go on from its masks"


def check_rounds(step: int, rounds: Sequence[Round], updates: Sequence[int], joined: int) -> None:
    """Every mask update of the schedule up to the step has its round, and no other one has.

    A finished pruner whose training went on has a step past the end, and all rounds.

    Args:
        updates: the step of each mask update of the schedule.
        joined: rounds up to this step are of another schedule, and are not looked at.
    Raises: InvalidValue
    """
    made = [update.step for update in rounds if update.step > joined]
    due = [at for at in updates if joined < at <= step]
    if made != due:
        odd = min(set(made) ^ set(due), default=step)
        what = f"has no round of the mask update at step {odd}" if odd in due else f"has a round at step {odd}"
        raise InvalidValue(
            f"the saved pruner state contradicts itself: at step {step} it {what}, where its schedule makes {len(due)} "
            f"mask updates and it has {len(made)} rounds; {_TRY}"
        )


def check_kept(rounds: Sequence[Round], units: Mapping[str, Tensor], joined: int) -> None:
    """The masks keep what the last mask update says that it kept, in all and of each layer.

    Args:
        units: layer, or group of channels -> its mask; empty while the channels are not known.
        joined: a round up to this step is of another schedule or network, and is not looked at.
    Raises: InvalidValue
    """
    if not units or not rounds or rounds[-1].step <= joined:
        return
    last = rounds[-1]
    said = {name: layer.kept for name, layer in (last.layers or {}).items()}
    kept = {name: count({name: mask}) for name, mask in units.items()}
    wrong = next((name for name, number in said.items() if kept.get(name) != number), None)
    if wrong is not None:
        raise InvalidValue(
            f"the saved pruner state contradicts itself: its mask of {wrong[:60]!r} keeps {kept.get(wrong, 0)}, and "
            f"its last round, of step {last.step}, says {said[wrong]}; {_TRY}"
        )
    if sum(kept.values()) != last.kept:
        raise InvalidValue(
            f"the saved pruner state contradicts itself: its masks keep {sum(kept.values())}, and its last round, of "
            f"step {last.step}, says {last.kept}; {_TRY}"
        )
