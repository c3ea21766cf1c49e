"""The rules: what each call of a recording makes of its operands, by the kind of its operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hypernets.architecture.calls import (
    convolution,
    cuts_at_zero,
    is_transposed_convolution,
    pooling,
    seen_through,
    summed_dimension,
    values_in,
)
from hypernets.architecture.drafts import Data, Draft, Fixed, Learned, Operand, State, Use
from hypernets.architecture.graph import Operation, Role
from hypernets.architecture.reading import Reading, fixed
from hypernets.architecture.recording import Call, Ref
from hypernets.architecture.vocabulary import (
    Constant,
    Einsum,
    Join,
    Layer,
    Multiply,
    Plain,
    Product,
    Rule,
    Sum,
    Transparent,
)

NORMS = {Operation.BATCH_NORM, Operation.LAYER_NORM, Operation.GROUP_NORM, Operation.RMS_NORM}
TAKES_BIAS = NORMS | {
    Operation.LINEAR,
    Operation.CONV,
    Operation.DEPTHWISE_CONV,
    Operation.TRANSPOSED_CONV,
    Operation.MULTIPLY,
}
"""Operations that a vector added right after them belongs to."""


class Builder(Reading):
    """Turns every call into a draft, a learned value or a fixed one, by the rule of its operator."""

    def _result(self, call: Call, rule: Rule, refs: list[Ref], states: list[State], lift: bool) -> State:
        if isinstance(rule, Layer):
            return self._layer(call, rule, lift)
        if isinstance(rule, (Product, Einsum)) and not any(isinstance(s, Data) for s in states):
            # Parameters in a product with what comes from an input, or where data are expected: a layer.
            learned = any(isinstance(s, Learned) for s in states)
            if learned and (lift or any(isinstance(s, Fixed) and s.inputs for s in states)):
                return self._product(call, rule)
        if lift:
            return self._lifted(call, rule, refs)
        if isinstance(rule, Constant):
            return Fixed()
        if not any(isinstance(s, Data) for s in states):
            return self._without_data(call, rule, states)
        match rule:
            case Transparent(data, keeps):
                return self._transparent(call, data, keeps)
            case Product() | Einsum():
                return self._product(call, rule)
            case Sum(data, role):
                summands = self._named(call, data)
                return self._added(call, self._data_only(summands), self._learned(summands), role)
            case Multiply(data, divisor):
                return self._multiply(call, data, divisor)
            case Join(data):
                return self._join(call, data)
            case Plain():
                return self._plain(call, rule)
        raise self._unexpected(call, f"it has no rule among {type(rule).__name__}")

    def _lifted(self, call: Call, rule: Rule, refs: list[Ref]) -> State:
        """Return a call on learned values as a node on the nodes that these become."""
        if isinstance(rule, Transparent):
            contents = [ref for ref in values_in([call.arguments.get(rule.data)]) if self._is_learned(ref)]
            learned = contents or [ref for ref in refs if self._is_learned(ref)]
            operand = self._as_data(learned[0].value) if learned else None
            if operand is None:
                raise self._unexpected(call, "none of its arguments is a learned value")
            return Data(operand.draft, operand.numbers)
        operands = [operand for ref in refs if (operand := self._as_data(ref.value)) is not None]
        operation = {Sum: Operation.ADD, Multiply: Operation.MULTIPLY, Join: Operation.CONCAT}.get(type(rule))
        if operation is not None and len(operands) == 1:
            return Data(operands[0].draft, operands[0].numbers)
        if operation is None:
            if not isinstance(rule, Plain):
                raise self._unexpected(call, f"a {type(rule).__name__} of learned values alone makes no node")
            operation = rule.operation
        return self._node(call, operation, operands)

    def _without_data(self, call: Call, rule: Rule, states: list[State]) -> State:
        learned = [s for s in states if isinstance(s, Learned)]
        if not learned:
            return fixed(states)
        uses = tuple({use.name: use for state in learned for use in state.uses}.values())
        looked_up = isinstance(rule, Plain) and rule.operation is Operation.GATHER
        if len(learned) == 1 and (isinstance(rule, Transparent) or looked_up):
            uses = tuple(use.as_role(Role.TABLE) if looked_up else seen_through(use, call) for use in uses)
            return Learned(uses, learned[0].call)
        return Learned(uses, self.call_number)

    def _transparent(self, call: Call, name: str, keeps: bool) -> State:
        refs = self._named(call, (name,)) or self._named(call, ())
        states = self._states(refs)
        data = next((s for s in states if isinstance(s, Data)), None)
        if data is None:
            # Only something else than the contents is data, such as what a copy is written over.
            return fixed(states) if all(isinstance(s, Fixed) for s in states) else states[0]
        result = next(value for value in call.results if value is not None)
        return Data(data.draft, data.numbers if keeps else result)

    def _layer(self, call: Call, rule: Layer, lift: bool) -> State:
        data = self._named(call, rule.data)
        weights = [self._learned(self._named(call, (name,))) for name in rule.weight]
        biases = self._learned(self._named(call, rule.bias)) if rule.bias else []
        computed = self._data_only(self._named(call, (*rule.weight, *rule.bias)))
        uses = [use for group in weights for use in self._weight_uses(group, rule, call)]
        if rule.operation is Operation.LINEAR and data and data[0].value in self.maps:
            uses = [use.over_map(*self.maps[data[0].value]) for use in uses]
        uses += [use.as_role(Role.BIAS) for use in biases]
        states = self._states(data)
        learned = [s for s in states if isinstance(s, Learned)]
        if rule.operation in NORMS and learned and not lift:
            merged = {use.name: use for use in [*(u for s in learned for u in s.uses), *uses]}
            return Learned(tuple(merged.values()), self.call_number)
        if not uses and not computed and all(isinstance(s, Fixed) for s in states):
            return fixed(states)
        if rule.operation is Operation.EMBEDDING and computed:
            return self._node(call, Operation.GATHER, [*computed, *self._positions(data)])
        operation, settings = convolution(call, rule.operation, self.recording)
        return self._node(call, operation, [*self._operands(data), *computed], uses, **settings)

    def _weight_uses(self, uses: Sequence[Use], rule: Layer, call: Call) -> Iterator[Use]:
        """Give roles to the parameters that a weight is made of: the largest is the weight itself."""
        if rule.operation is Operation.RECURRENT:
            yield from (use.as_role(Role.WEIGHT if len(use.shape) > 1 else Role.BIAS) for use in uses)
            return
        largest = max((use.numel for use in uses if use.role is None), default=0)
        for use in uses:
            if rule.role is not Role.WEIGHT or use.numel == largest or not use.is_vector:
                transposed = rule.operation is Operation.TRANSPOSED_CONV or is_transposed_convolution(call)
                if rule.operation is Operation.LINEAR and len(use.shape) == 2:
                    transposed = use.order == (1, 0)
                yield use.as_role(rule.role, transposed)
            else:
                yield use.as_role(Role.SCALE)

    def _product(self, call: Call, rule: Product | Einsum) -> State:
        if isinstance(rule, Einsum):
            factors, added = list(values_in([call.arguments["tensors"]])), []
        else:
            factors, added = self._named(call, (rule.left, rule.right)), self._named(call, (rule.added,))
            added = added if rule.added else []
        learned = [ref for ref in factors if self._is_learned(ref)]
        data = [ref for ref in factors if not self._is_learned(ref)]
        if not data:
            data, learned = learned[:1], learned[1:]
        if learned and data:
            uses = [
                use.as_role(Role.WEIGHT if not use.is_vector or len(learned) == 1 else Role.SCALE, transposed)
                for ref in learned
                for use, transposed in self._oriented(call, rule, ref)
            ]
            result: State = self._node(call, Operation.LINEAR, self._operands(data), uses)
        else:
            operands = [operand for ref in factors if (operand := self._as_data(ref.value)) is not None]
            result = self._node(call, Operation.MATMUL, operands)
        return self._plus(call, result, added) if added else result

    def _oriented(self, call: Call, rule: Product | Einsum, ref: Ref) -> Iterator[tuple[Use, bool]]:
        """Iterate over a factor's parameters, and whether their input dimension comes first."""
        summed = summed_dimension(call, rule, ref, len(self.recording.values[ref.value].shape))
        for use in self._learned([ref]):
            if len(use.shape) != 2:
                yield use, False
            elif use.order is not None and len(use.order) == 2 and summed is not None:
                yield use, use.order[summed] == 0
            else:
                shape = self.recording.values[ref.value].shape
                yield use, summed is not None and shape[summed] == use.shape[0] != use.shape[1]

    def _plus(self, call: Call, first: State, added: Sequence[Ref]) -> State:
        """Return a product with something added to it."""
        if not isinstance(first, Data):
            raise self._unexpected(call, "something is added to what is no node")
        operands = [*self._data_only(added), Operand(first.draft, first.numbers)]
        return self._added(call, operands, self._learned(added), Role.BIAS)

    def _added(self, call: Call, operands: list[Operand], learned: list[Use], vector: Role) -> State:
        if not operands:
            return self._transparent(call, "condition", keeps=False)
        uses = [use.as_role(vector if use.is_vector else Role.TABLE) for use in learned]
        if len(operands) > 1:
            return self._node(call, Operation.ADD, operands, uses)
        only = operands[0]
        if not uses:
            return Data(only.draft, only.numbers)
        if all(use.role is Role.BIAS for use in uses) and _takes_bias(only.draft):
            only.draft.uses += uses
            return Data(only.draft, next(value for value in call.results if value is not None))
        return self._node(call, Operation.ADD, operands, uses)

    def _multiply(self, call: Call, names: Sequence[str], divisor: str) -> State:
        refs = self._named(call, names)
        operands = self._data_only(refs)
        uses = [use.as_role(Role.SCALE) for use in self._learned(refs)]
        if len(operands) > 1:
            return self._node(call, Operation.MULTIPLY, operands, uses)
        if not operands:
            return self._without_data(call, Multiply(), self._states(refs))
        only = operands[0]
        if divisor and not self._data_only(self._named(call, names[:1])):
            return self._node(call, Operation.ACTIVATION, operands, uses)
        if uses:
            return self._node(call, Operation.MULTIPLY, operands, uses)
        return Data(only.draft, only.numbers)

    def _join(self, call: Call, names: Sequence[str]) -> State:
        refs = self._named(call, names)
        operands = self._data_only(refs)
        uses = [use.as_role(Role.TABLE) for use in self._learned(refs)]
        if not operands:
            return self._without_data(call, Join(), self._states(refs))
        if len(operands) == 1 and not uses:
            return Data(operands[0].draft, next(value for value in call.results if value is not None))
        return self._node(call, Operation.CONCAT, operands, uses)

    def _plain(self, call: Call, rule: Plain) -> State:
        refs = self._named(call, rule.data)
        if rule.absorbs is None:
            operands, uses = [o for ref in refs if (o := self._as_data(ref.value)) is not None], []
        else:
            operands = self._data_only(refs)
            uses = [use.as_role(rule.absorbs) for use in self._learned(refs)]
        if rule.operation is Operation.ATTENTION:
            operands, uses = self._attention(call)
        operands += self._positions(self._named(call, rule.positions)) if rule.positions else []
        if not operands:
            return self._without_data(call, rule, self._states(refs))
        operation, settings = pooling(call, rule.operation)
        if cuts_at_zero(call):
            operation = Operation.RELU
        return self._node(call, operation, operands, uses, **settings)

    def _attention(self, call: Call) -> tuple[list[Operand], list[Use]]:
        heads = self._named(call, ("query", "key", "value"))
        bias = self._named(call, ("attn_mask", "attn_bias"))
        operands = [o for ref in heads if (o := self._as_data(ref.value)) is not None] + self._data_only(bias)
        return operands, [use.as_role(Role.TABLE) for use in self._learned(bias)]


def _takes_bias(draft: Draft) -> bool:
    roles = {use.role for use in draft.uses}
    return draft.operation in TAKES_BIAS and bool(roles) and Role.BIAS not in roles
