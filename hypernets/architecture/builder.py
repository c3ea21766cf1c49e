"""From a recording to drafts of nodes.

The calls are read in order, and each value is one of three things: data (a node made it), learned (parameters
alone determine it, such as a weight with its norm taken out) or fixed (neither does). Learned values are
absorbed by the first layer that uses them; where data are expected they become nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

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
from hypernets.architecture.recording import Call, Recording, Ref
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
    operator_name,
    rule_of,
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


class Builder:
    """Reads the calls of a recording in order and keeps the state of every value."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.drafts: list[Draft] = []
        self.states: dict[int, State] = {}
        self.tables: dict[tuple[str, ...], Draft] = {}
        self.input_drafts: dict[int, Draft] = {}
        self.call_number = 0
        self.lifted: dict[int, Draft] = {}
        self.maps: dict[int, tuple[int, int]] = {}

    def build(self) -> list[Draft]:
        """Return the drafts in the order in which they were made."""
        recording = self.recording
        for value in recording.inputs:
            self.input_drafts[value] = self._add(Draft(Operation.INPUT, "input"))
            floating = recording.values[value].floating
            self.states[value] = (
                Data(self.input_drafts[value], value) if floating else Fixed(frozenset((value,)))
            )
        for value, name in recording.parameters.items():
            shape = recording.values[value].shape
            if recording.values[value].floating:
                self.states[value] = Learned((Use(name, shape, tuple(range(len(shape)))),))
        for number, call in enumerate(recording.calls):
            self.call_number = number
            self._call(call)
        for value in recording.outputs:
            state = self._state(value)
            operand = None if isinstance(state, Fixed) else self._as_data(value)
            self._add(Draft(Operation.OUTPUT, "output", operands=[operand] if operand else []))
        return self.drafts

    def _state(self, value: int) -> State:
        return self.states.get(value, Fixed())

    def _states(self, refs: Iterable[Ref]) -> list[State]:
        return [self._state(ref.value) for ref in refs]

    def _add(self, draft: Draft) -> Draft:
        self.drafts.append(draft)
        return draft

    def _as_data(self, value: int) -> Operand | None:
        """Return a value as a node's operand: what is learned becomes nodes, what is fixed none."""
        state = self._state(value)
        if isinstance(state, Data):
            return Operand(state.draft, state.numbers)
        if isinstance(state, Fixed):
            return None
        if state.call is None:
            names = tuple(use.name for use in state.uses)
            if names not in self.tables:
                uses = [use.as_role(_raw_role(use)) for use in state.uses]
                self.tables[names] = self._add(Draft(Operation.PARAMETER, "parameter", uses))
            return Operand(self.tables[names], value)
        if state.call not in self.lifted:
            self._lift(state.call)
        return Operand(self.lifted[state.call], value)

    def _lift(self, number: int) -> None:
        """Build the nodes of a call on parameters alone, and of the calls that it depends on, in order."""
        needed, pending = {number}, [number]
        while pending:
            arguments = self.recording.calls[pending.pop()].arguments
            for state in self._states(values_in(arguments.values())):
                origin = state.call if isinstance(state, Learned) else None
                if origin is not None and origin not in needed and origin not in self.lifted:
                    needed.add(origin)
                    pending.append(origin)
        for earlier in sorted(needed):
            call = self.recording.calls[earlier]
            refs = list(values_in(call.arguments.values()))
            lifted = self._result(call, rule_of(call.operator), refs, self._states(refs), lift=True)
            assert isinstance(lifted, Data)
            self.lifted[earlier] = lifted.draft

    def _call(self, call: Call) -> None:
        refs = list(values_in(call.arguments.values()))
        states = self._states(refs)
        results = [value for value in call.results if value is not None]
        rule = rule_of(call.operator)
        if isinstance(rule, Transparent):
            self._follow_map(call, rule, results)
        if any(self.recording.values[value].floating for value in results):
            state = self._result(call, rule, refs, states, lift=False)
        else:
            state = _fixed(states)
        for value in results:
            floating = self.recording.values[value].floating
            if isinstance(state, Data) and floating:
                numbers = state.numbers if len(results) == 1 else value
                self.states[value] = Data(state.draft, numbers)
            else:
                self.states[value] = state if floating else _fixed(states)

    def _follow_map(self, call: Call, rule: Transparent, results: Sequence[int]) -> None:
        """Remember which values are images whose height, width and channels were flattened into one."""
        values = self.recording.values
        for ref in self._named(call, (rule.data,))[:1]:
            before = values[ref.value].shape
            for value in results:
                after = values[value].shape
                if len(before) == 4 and after == (before[0], before[1] * before[2] * before[3]):
                    self.maps[value] = (before[2], before[3])
                elif ref.value in self.maps and after == before:
                    self.maps[value] = self.maps[ref.value]

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
        raise AssertionError(rule)

    def _lifted(self, call: Call, rule: Rule, refs: list[Ref]) -> State:
        """Return a call on learned values as a node on the nodes that these become."""
        if isinstance(rule, Transparent):
            contents = [ref for ref in values_in([call.arguments.get(rule.data)]) if self._is_learned(ref)]
            operand = self._as_data((contents or [ref for ref in refs if self._is_learned(ref)])[0].value)
            assert operand is not None
            return Data(operand.draft, operand.numbers)
        operands = [operand for ref in refs if (operand := self._as_data(ref.value)) is not None]
        operation = {Sum: Operation.ADD, Multiply: Operation.MULTIPLY, Join: Operation.CONCAT}.get(type(rule))
        if operation is not None and len(operands) == 1:
            return Data(operands[0].draft, operands[0].numbers)
        if operation is None:
            assert isinstance(rule, Plain)
            operation = rule.operation
        return self._node(call, operation, operands)

    def _is_learned(self, ref: Ref) -> bool:
        return isinstance(self._state(ref.value), Learned)

    def _without_data(self, call: Call, rule: Rule, states: list[State]) -> State:
        learned = [s for s in states if isinstance(s, Learned)]
        if not learned:
            return _fixed(states)
        uses = tuple({use.name: use for state in learned for use in state.uses}.values())
        looked_up = isinstance(rule, Plain) and rule.operation is Operation.GATHER
        if len(learned) == 1 and (isinstance(rule, Transparent) or looked_up):
            uses = tuple(use.as_role(Role.TABLE) if looked_up else seen_through(use, call) for use in uses)
            return Learned(uses, learned[0].call)
        return Learned(uses, self.call_number)

    def _node(
        self,
        call: Call,
        operation: Operation,
        operands: Sequence[Operand],
        uses: Sequence[Use] = (),
        **settings: int,
    ) -> Data:
        draft = Draft(operation, operator_name(call.operator), list(uses), list(operands), **settings)
        result = next(value for value in call.results if value is not None)
        return Data(self._add(draft), result)

    def _operands(self, refs: Iterable[Ref]) -> list[Operand]:
        """Return data and learned values as operands; where there are none, the inputs of integers."""
        refs = list(refs)
        found = [operand for ref in refs if (operand := self._as_data(ref.value)) is not None]
        return found or self._positions(refs)

    def _positions(self, refs: Iterable[Ref]) -> list[Operand]:
        """Return the inputs of integers that fixed values come from."""
        inputs = {i: None for s in self._states(refs) if isinstance(s, Fixed) for i in sorted(s.inputs)}
        return [Operand(self.input_drafts[i], i) for i in inputs]

    def _learned(self, refs: Iterable[Ref]) -> list[Use]:
        states = self._states(refs)
        return [use for state in states if isinstance(state, Learned) for use in state.uses]

    def _data_only(self, refs: Iterable[Ref]) -> list[Operand]:
        return [Operand(s.draft, s.numbers) for s in self._states(refs) if isinstance(s, Data)]

    def _named(self, call: Call, names: Sequence[str]) -> list[Ref]:
        if not names:
            return list(values_in(call.arguments.values()))
        return list(values_in(call.arguments.get(name) for name in names))

    def _transparent(self, call: Call, name: str, keeps: bool) -> State:
        refs = self._named(call, (name,)) or self._named(call, ())
        states = self._states(refs)
        data = next((s for s in states if isinstance(s, Data)), None)
        if data is None:
            # Only something else than the contents is data, such as what a copy is written over.
            return _fixed(states) if all(isinstance(s, Fixed) for s in states) else states[0]
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
            return _fixed(states)
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
        assert isinstance(first, Data)
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


def _fixed(states: Iterable[State]) -> Fixed:
    return Fixed(frozenset(i for state in states if isinstance(state, Fixed) for i in state.inputs))


def _raw_role(use: Use) -> Role:
    return Role.SCALE if use.numel == 1 else Role.TABLE


def _takes_bias(draft: Draft) -> bool:
    roles = {use.role for use in draft.uses}
    return draft.operation in TAKES_BIAS and bool(roles) and Role.BIAS not in roles
