"""`Recipe`, `Rule` and `Match`: which weights, and which activations that meet them, get which spec."""

from fnmatch import fnmatchcase
from functools import cache
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import SchemaError, SchemaValidator, core_schema

from onnxq.errors import nearest
from onnxq.model.operators import WEIGHT_OPERATORS
from onnxq.recipes.activation import ActivationSpec
from onnxq.recipes.cache import CacheSpec
from onnxq.recipes.spec import QuantSpec, as_list
from onnxq.recipes.steps import Step

Role = Literal["linear", "embedding", "head"]
NonFinitePolicy = Literal["error", "skip", "clamp"]
Correction = Literal["norm", "bias"]
Names = Annotated[tuple[str, ...], BeforeValidator(as_list), Field(min_length=1)]


class Match(BaseModel):
    """Conditions on a weight; all that are given must hold.

    Attributes:
        name: Globs; one must match the name of the node or of the initializer.
        regex: As `name`, with regular expressions that must match from the beginning to the end; see `expression`.
        op: Operator types, `MatMul` or `com.microsoft::FusedMatMul`.
        role: What the weight is for. Embeddings and the output head are matched only where they are named here.
        min_size: Fewest elements.
        max_size: Most elements.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Names = ()
    regex: Names = ()
    op: Names = ()
    role: Annotated[tuple[Role, ...], BeforeValidator(as_list), Field(min_length=1)] = ("linear",)
    min_size: Annotated[int, Field(ge=0)] = 0
    max_size: Annotated[int | None, Field(ge=0)] = None

    @field_validator("regex")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                expression(pattern)
            except SchemaError as error:
                # Behind "SchemaError: ", or behind the pattern again and "error: ".
                cause = str(error).rpartition("rror: ")[2]
                raise ValueError(f"'{pattern}' is not a regular expression: {cause}") from None
        return patterns

    @field_validator("op")
    @classmethod
    def _reads_a_weight(cls, operators: tuple[str, ...]) -> tuple[str, ...]:
        for operator in operators:
            if operator not in WEIGHT_OPERATORS:
                raise ValueError(f"no operator '{operator}' reads a weight; {nearest(operator, WEIGHT_OPERATORS)}")
        return operators

    @model_validator(mode="after")
    def _sizes_leave_room(self) -> "Match":
        if self.max_size is not None and self.max_size < self.min_size:
            raise ValueError(f"max_size {self.max_size} is less than min_size {self.min_size}")
        return self

    def matches(self, *, names: tuple[str, ...], op: str, role: Role, size: int) -> bool:
        """Whether a weight of `size` elements, read by an operator `op` under these names, meets all conditions."""
        if role not in self.role or size < self.min_size or (self.max_size is not None and size > self.max_size):
            return False
        if self.op and op not in self.op:
            return False
        return not (self.name or self.regex) or self.matches_name(names)

    def matches_name(self, names: tuple[str, ...]) -> bool:
        """Whether one of the patterns matches one of the names."""
        return any(fnmatchcase(name, glob) for name in names for glob in self.name) or any(
            expression(pattern).isinstance_python(name) for name in names for pattern in self.regex
        )


@cache
def expression(pattern: str) -> SchemaValidator:
    """A regular expression whose time is proportional to the text, whatever the pattern: Rust's, without look-around.

    Raises:
        SchemaError: It is not valid, or too large.
    """

    def validator(whole: str) -> SchemaValidator:
        return SchemaValidator(core_schema.str_schema(pattern=whole, regex_engine="rust-regex"))

    # Alone first: a parenthesis too many must not close the one around it.
    validator(pattern)
    return validator(rf"\A(?:{pattern})\z")


class Rule(BaseModel):
    """What to do with the weights that match: quantize them so, or leave them float for a reason.

    Attributes:
        match: Which weights.
        weight: How they are quantized.
        activation: How the activations that they are multiplied with are quantized.
        skip: Why neither is quantized.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    match: Match = Match()
    weight: QuantSpec | None = None
    activation: ActivationSpec | None = None
    skip: str | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> "Rule":
        if (self.weight is None and self.activation is None) == (self.skip is None):
            raise ValueError("a rule says either 'weight:' or 'activation:' (how to quantize), or 'skip:' (why not)")
        return self


class Recipe(BaseModel):
    """An ordered list of rules; for each weight the last rule that matches decides.

    Attributes:
        name: How reports call it.
        about: One line for people.
        extends: Name of a preset whose steps and rules come first.
        equalize: What is done to the float model before its weights are quantized, in order.
        rules: In order.
        correct: What is changed around rounded weights, so that layers are nearer to those of the float model: scales
            of norms (`norm`, behind GPTQ only), and biases (`bias`).
        non_finite: What to do with a weight that holds NaN or Inf: refuse the model (`error`), leave that weight float
            (`skip`), or replace NaN by zero and Inf by the largest finite magnitude of the tensor (`clamp`).
        cache: How the cache of keys and values of a language model is quantized; None leaves it float.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "recipe"
    about: str = ""
    extends: str | None = None
    equalize: tuple[Step, ...] = ()
    rules: tuple[Rule, ...] = ()
    correct: Annotated[tuple[Correction, ...], BeforeValidator(as_list)] = ()
    non_finite: NonFinitePolicy = "error"
    cache: CacheSpec | None = None

    @model_validator(mode="after")
    def _norms_follow_gptq(self) -> "Recipe":
        methods = sorted({rule.weight.method for rule in self.rules if rule.weight})
        # Rules of a preset are not there yet.
        if "norm" in self.correct and self.extends is None and "gptq" not in methods:
            raise ValueError(
                f"correct: norm goes with method gptq only, not with {', '.join(methods) or 'no weights at all'}: what "
                "plain rounding leaves is noise, and fitting a norm to it can hurt"
            )
        return self

    @property
    def is_empty(self) -> bool:
        """Nothing in it changes a model."""
        changes = self.equalize or self.cache is not None
        return not changes and not any(rule.weight or rule.activation for rule in self.rules)

    def with_rules(self, *rules: Rule) -> "Recipe":
        """The same recipe with more rules at the end, where they win."""
        return self.model_copy(update={"rules": (*self.rules, *rules)})

    def decide(self, *, names: tuple[str, ...], op: str, role: Role, size: int) -> QuantSpec | str:
        """The spec for a weight, or why it stays float."""
        rule = self._rule(names, op, role, size)
        if isinstance(rule, str):
            return rule
        return rule.weight or rule.skip or "its rule quantizes the activation only"

    def decide_activation(self, *, names: tuple[str, ...], op: str, role: Role, size: int) -> ActivationSpec | str:
        """The spec for what a weight is multiplied with, or why that stays float."""
        rule = self._rule(names, op, role, size)
        if isinstance(rule, str):
            return rule
        return rule.activation or rule.skip or "its rule quantizes the weight only"

    def _rule(self, names: tuple[str, ...], op: str, role: Role, size: int) -> Rule | str:
        """The rule that decides about a weight, or why there is none."""
        for rule in reversed(self.rules):
            if rule.match.matches(names=names, op=op, role=role, size=size):
                return rule
        if role != "linear":
            return f"{role}: off unless a rule asks for it with role: {role}"
        return "no rule matches"
