"""What a caller picks beside the recipe, and patterns that pick nothing."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from onnxq.model.sites import Weight
from onnxq.recipes import Recipe

# Of the patterns of one rule; a recipe that was made for another model can have hundreds.
_SHOWN = 3


@dataclass(frozen=True)
class Selection:
    """What a caller picks beside the recipe, by globs on the names of weights and of the nodes that read them.

    Attributes:
        include: Where given, weights that match none of them stay float.
        exclude: Weights that match one of them stay float.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def refusal(self, weight: Weight) -> str | None:
        """Why a weight is not picked, or None."""
        if self.include and not _matches(weight.names, self.include):
            return "not included"
        return "excluded" if _matches(weight.names, self.exclude) else None


def unmatched(weights: Sequence[Weight], recipe: Recipe, selection: Selection) -> Iterator[str]:
    """A sentence for each rule, and each glob of the caller, whose patterns match no name in the model.

    Most often that is a slip of the pen, which else would only show as a weight that is not what it should be. Of the
    patterns of one rule, which may have been written for several architectures, one that matches is enough.
    """
    names = tuple(dict.fromkeys(name for weight in weights for name in weight.names))
    for number, rule in enumerate(recipe.rules, 1):
        patterns = (*rule.match.name, *rule.match.regex)
        if patterns and not rule.match.matches_name(names):
            yield f"rule {number} of '{recipe.name}' matches no weight: {_quoted(patterns, names)}"
    for option, globs in (("include", selection.include), ("exclude", selection.exclude)):
        for glob in globs:
            if not _matches(names, (glob,)):
                yield f"{option} matches no weight: {_quoted((glob,), names)}"


def _matches(names: Iterable[str], globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, glob) for name in names for glob in globs)


def _quoted(patterns: Sequence[str], names: Sequence[str]) -> str:
    """The first patterns, how many there are more, and the name that is most like one of the first."""
    shown, more = patterns[:_SHOWN], len(patterns) - _SHOWN
    # A pattern may be for a part of a name: '*q_prj*' is like the end of 'layers.0.q_proj'.
    whole = {part: name for name in reversed(names) for part in (*re.split("[./]", name), name)}
    # Only as far as the first that is like a name: each pattern is compared with all of them.
    close = (part for pattern in shown for part in get_close_matches(pattern.strip("*"), whole, n=1, cutoff=0.5))
    quoted = ", ".join(f"'{pattern}'" for pattern in shown) + (f" and {more} more" if more > 0 else "")
    return f"{quoted}; the nearest name is '{whole[part]}'" if (part := next(close, None)) else quoted
