"""What is compared: one loss, and what each variant does about the gate."""

from collections.abc import Mapping

from cellar_trainer.learning.objectives import ObjectiveOptions

EXPLICIT = "explicit"
AGAIN = "explicit again"
"""The control: the explicit policy, sampled anew. How far two runs of one and the same method drift apart."""

VARIANTS: Mapping[str, ObjectiveOptions] = {
    "plain": ObjectiveOptions(name="dapo"),
    EXPLICIT: ObjectiveOptions(name="eh_grpo"),
    "exact": ObjectiveOptions.preset("exact"),
    "exact, fence": ObjectiveOptions.preset("exact", mask="fence"),
    "exact, live": ObjectiveOptions.preset("exact", mask="live"),
    "first": ObjectiveOptions.preset("exact", f="first"),
    "none": ObjectiveOptions.preset("exact", f="none"),
    "released": ObjectiveOptions.preset("released"),
}
IMPLICIT = tuple(name for name in VARIANTS if name != EXPLICIT)


def options_of(variant: str) -> ObjectiveOptions:
    return VARIANTS[EXPLICIT if variant == AGAIN else variant]


def is_explicit(variant: str) -> bool:
    return variant in (EXPLICIT, AGAIN)
