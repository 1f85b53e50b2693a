"""`Named`: what plans and reports call a weight."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Named:
    """What a weight goes by.

    Attributes:
        weight: Name of the constant.
        label: What people call it: the path of the module that reads it, where the exporter noted it, or the name.
        op: Type of the operator that reads it.
        readers: Names of the nodes that read it.
    """

    weight: str
    label: str
    op: str
    readers: tuple[str, ...]
