"""`Corrections`: what is changed around the rounded weights of a model, as far as that lowers the errors of layers."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np

from onnxq.formats.base import Floats
from onnxq.methods.correct import aqer, bias, norm
from onnxq.methods.solution import Solution
from onnxq.model.load import Model
from onnxq.passes.correct.places import BIAS, NORM, Bias, Norm, find_norms, open_biases
from onnxq.passes.curvatures import Curvatures
from onnxq.passes.edit import Editor
from onnxq.passes.solving import Work, aimed, as_matrix
from onnxq.passes.step import Change, Refusal
from onnxq.recipes import Correction
from onnxq.statistics.requests import Key
from onnxq.statistics.statistics import Statistics


@dataclass
class Corrected:
    """Corrections that were found.

    Attributes:
        factors: For the number of a layer what the norm before it gives is multiplied with, [K]; equal for all layers
            that read one norm.
        biases: For the number of a layer what is added to its columns, [C].
        changes: What was done where, and why not elsewhere.
    """

    factors: dict[int, Floats] = field(default_factory=dict)
    biases: dict[int, Floats] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def update(self, other: "Corrected") -> None:
        """Take in what was found elsewhere."""
        self.factors |= other.factors
        self.biases |= other.biases
        self.changes += other.changes

    def parts(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """All of it, in numbers and in words."""
        kept = {f"factors {at}": each for at, each in self.factors.items()}
        kept |= {f"biases {at}": each for at, each in self.biases.items()}
        return kept, {"changes": json.dumps([asdict(each) for each in self.changes])}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], words: Mapping[str, str]) -> "Corrected":
        """What `parts` gave."""
        made = cls(changes=[Change(**each) for each in json.loads(words["changes"])])
        for name, array in arrays.items():
            kind, number = name.split()
            getattr(made, kind)[int(number)] = array
        return made


@dataclass(frozen=True)
class Seen:
    """What is known about layers that are solved.

    Attributes:
        statistics: About what they read.
        solved: Gives the solution of a layer, or why it stays float.
        float_name: For the name of what a layer reads that of what the float model has there; means are known of both.
    """

    statistics: Statistics
    solved: Callable[[int], Solution | str]
    float_name: Callable[[str], str]


class Corrections:
    """The places of a model that corrections can go to, and what was found for them.

    Attributes:
        work: The layers.
        norms: Before layers that are solved by GPTQ.
        biases: By the number of the layer.
        found: So far.
    """

    def __init__(self, model: Model, work: Sequence[Work], asked: Sequence[Correction]) -> None:
        """Find them; where a bias can go and none is, zeros are added."""
        self._model = model
        self.work = work
        self.norms: list[Norm] = []
        self.biases: dict[int, Bias] = {}
        self.found = Corrected()
        if "norm" in asked:
            self.norms, refused = find_norms(model, work)
            self.found.changes += refused
        if "bias" in asked:
            self.biases, refused = open_biases(model, work)
            self.found.changes += refused

    def __bool__(self) -> bool:
        return bool(self.norms or self.biases)

    def find(self, layers: Sequence[int], seen: Seen) -> Corrected:
        """What some solved layers ask for; all that read one tensor are among them."""
        made, curvatures = Corrected(), Curvatures(seen.statistics)
        for place in self.norms:
            if set(place.layers) <= set(layers):
                made.changes.append(_tried(NORM, place.tensor, partial(self._scaled, place, seen, curvatures, made)))
        for at in layers:
            if at in self.biases:
                made.changes.append(_tried(BIAS, self.work[at].weight.name, partial(self._added, at, seen, made)))
        return made

    def _scaled(self, place: Norm, seen: Seen, curvatures: Curvatures, made: Corrected) -> str:
        centred = all(at in self.biases for at in place.layers)
        curvature = curvatures.of(self.work[place.layers[0]].measured, centred=centred)
        if curvature is None:
            raise Refusal("nothing is known about it")
        weights, rounded = [], []
        for at in place.layers:
            weight, made_of_it = aimed(self.work[at].matrix(), curvature), _rounded(seen, at)
            # Each layer counts by how much of its own output is wrong.
            size = curvature.error(weight) ** 0.5 or 1.0
            weights.append(weight / size)
            rounded.append(made_of_it / size)
        factors = norm.factors(curvature.matrix, weights, rounded)
        before, after = (norm.error(curvature.matrix, weights, rounded, each) for each in (None, factors))
        if not after < before:
            raise Refusal("no factors lower the error of the layers that read it")
        made.factors |= dict.fromkeys(place.layers, factors)
        return f"the error of the layers that read it is {1 - after / before:.0%} smaller".replace("%", " %")

    def _added(self, at: int, seen: Seen, made: Corrected) -> str:
        item, place = self.work[at], self.biases[at]
        if (reading := item.known) is None:
            raise Refusal("nothing is known about what it is multiplied with")
        rounded = _rounded(seen, at)
        if at in made.factors:
            rounded = rounded * made.factors[at][:, None]
        tensor, view, statistics = reading.tensor, reading.view, seen.statistics
        float_name = seen.float_name(tensor)
        own, exact = (statistics.channel_mean(name, view) for name in (tensor, float_name))
        if Key(tensor, "cross", view.label, float_name) in statistics.answers:
            # As much of the way as the weight itself goes.
            exact = own + aqer.SHARE * (exact - own)
        wanted = bias.correction(exact, item.matrix(), rounded, own)
        old = place.tensor.numpy().astype(np.float32)
        new = (old + wanted).astype(place.tensor.dtype.numpy()).astype(np.float32)
        # By so much the squared error of a row of the output falls in the mean.
        if not ((new - old) * (2 * wanted - (new - old))).sum() > 0:
            raise Refusal("its mean is what it was")
        made.biases[at] = new
        return place.words

    def apply(self) -> None:
        """Write all that was found into the model.

        Raises:
            ModelError: A constant leaves the range of its type.
        """
        for at, place in self.biases.items():
            if at in self.found.biases:
                place.put(self.found.biases[at])
            place.close()
        editor = Editor(self._model.ir)
        for each in self.norms:
            if each.layers[0] in self.found.factors:
                each.put(self.found.factors[each.layers[0]], editor)


def _tried(step: str, place: str, correct: Callable[[], str]) -> Change:
    try:
        return Change(step, place, done=correct())
    except Refusal as refusal:
        return Change(step, place, reason=str(refusal))


def _rounded(seen: Seen, at: int) -> Floats:
    """What stands in the place of a weight, [K, C]."""
    solution = seen.solved(at)
    if isinstance(solution, str):
        raise Refusal("a weight stays float")
    return as_matrix(solution.weight())
