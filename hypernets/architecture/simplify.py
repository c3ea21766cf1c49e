"""From a recording to a graph: contract what only reshapes, prune what is no data, fuse what is spelt out.

The calls are read in order, and each value is one of three things: data (a node made it), learned (parameters
alone determine it, such as a weight with its norm taken out) or fixed (neither does). Learned values are
absorbed by the first layer that uses them; where data are expected they become nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hypernets.architecture.drafts import Data, Draft, Fixed, Learned, Operand, State, Use
from hypernets.architecture.fusing import fuse
from hypernets.architecture.graph import (
    ArchitectureGraph,
    Edge,
    Node,
    Operation,
    Parameter,
    Role,
    SkipReason,
)
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
PERMUTATIONS = {"t", "numpy_T", "mT", "transpose", "permute", "swapaxes", "swapdims", "mH", "adjoint"}
SAME_DIMENSIONS = {"detach", "alias", "to", "_to_copy", "clone", "contiguous", "type_as", "lift_fresh"}


def simplify(recording: Recording) -> list[Draft]:
    """Return the drafts of a graph's nodes, in topological order; what leads to no output is left out."""
    return _reaching_outputs(fuse(_Builder(recording).build()))


def finish(drafts: Sequence[Draft], skipped: dict[str, SkipReason]) -> ArchitectureGraph:
    """Return the graph of drafts. A parameter that is not skipped belongs to the first node that uses it."""
    numbers = {id(draft): i for i, draft in enumerate(drafts)}
    taken = set(skipped)
    nodes = []
    for draft in drafts:
        own = []
        for use in draft.uses:
            if use.name not in taken:
                taken.add(use.name)
                own.append(
                    Parameter(use.name, use.shape, use.role or Role.TABLE, use.transposed, use.spatial)
                )
        nodes.append(
            Node(draft.operation, tuple(own), draft.groups, draft.stride, draft.dilation, draft.kernel)
        )
    edges = tuple(
        Edge(numbers[id(operand.draft)], i, position)
        for i, draft in enumerate(drafts)
        for position, operand in enumerate(draft.operands)
    )
    return ArchitectureGraph(tuple(nodes), edges, skipped)


def names_used(drafts: Iterable[Draft]) -> set[str]:
    """Return the names of all parameters that drafts use."""
    return {use.name for draft in drafts for use in draft.uses}


def _reaching_outputs(drafts: Sequence[Draft]) -> list[Draft]:
    ends = [d for d in drafts if d.operation is Operation.OUTPUT]
    reached = {id(d) for d in ends}
    while ends:
        for operand in ends.pop().operands:
            if id(operand.draft) not in reached:
                reached.add(id(operand.draft))
                ends.append(operand.draft)
    return [d for d in drafts if id(d) in reached or d.operation is Operation.INPUT]


class _Builder:
    """Reads the calls of a recording in order and keeps the state of every value."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.drafts: list[Draft] = []
        self.states: dict[int, State] = {}
        self.tables: dict[tuple[str, ...], Draft] = {}
        self.input_drafts: dict[int, Draft] = {}
        self.call_number = 0
        self.lifted: dict[int, Data] = {}
        self.maps: dict[int, tuple[int, int]] = {}

    def build(self) -> list[Draft]:
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
            self._call(call, lift=False)
        for value in recording.outputs:
            state = self._state(value)
            operand = None if isinstance(state, Fixed) else self._as_data(value)
            self._add(Draft(Operation.OUTPUT, "output", operands=[operand] if operand else []))
        return self.drafts

    # -- states -------------------------------------------------------------------------------------------

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
        if value not in self.lifted:
            if state.call is None:
                names = tuple(use.name for use in state.uses)
                if names not in self.tables:
                    uses = [use.as_role(_raw_role(use)) for use in state.uses]
                    self.tables[names] = self._add(Draft(Operation.PARAMETER, "parameter", uses))
                self.lifted[value] = Data(self.tables[names], value)
            else:
                self._lift(state.call)
                lifted = self.states.get(value)
                assert isinstance(lifted, Data)
                self.lifted[value] = lifted
                self.states[value] = state
        lifted = self.lifted[value]
        return Operand(lifted.draft, lifted.numbers)

    def _lift(self, number: int) -> None:
        """Build the nodes of a call on parameters alone."""
        before, self.call_number = self.call_number, number
        self._call(self.recording.calls[number], lift=True)
        self.call_number = before

    def _call(self, call: Call, lift: bool) -> None:
        refs = list(_refs(call.arguments.values()))
        states = self._states(refs)
        results = [value for value in call.results if value is not None]
        rule = rule_of(call.operator)
        if isinstance(rule, Transparent):
            self._follow_map(call, rule, results)
        if any(self.recording.values[value].floating for value in results):
            state = self._result(call, rule, refs, states, lift)
        else:
            state = _fixed(states)
        for value in results:
            floating = self.recording.values[value].floating
            if isinstance(state, Data) and floating:
                numbers = state.numbers if len(results) == 1 else value
                self.states[value] = Data(state.draft, numbers)
            else:
                self.states[value] = state if floating else _fixed(states)

    def _result(self, call: Call, rule: Rule, refs: list[Ref], states: list[State], lift: bool) -> State:
        if isinstance(rule, Layer):
            return self._layer(call, rule, lift)
        if lift:
            return self._lifted(call, rule, refs)
        if isinstance(rule, Constant):
            return Fixed()
        if not any(isinstance(s, Data) for s in states):
            if isinstance(rule, (Product, Einsum)) and {type(s) for s in states} == {Fixed, Learned}:
                return self._product(call, rule)  # Fixed data, such as coordinates, in a layer.
            return self._without_data(call, rule, states)
        match rule:
            case Transparent(data, keeps):
                return self._transparent(call, data, keeps)
            case Product() | Einsum():
                return self._product(call, rule)
            case Sum(data, role):
                return self._sum(call, data, role)
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
            names = [ref for ref in _refs([call.arguments.get(rule.data)]) if self._is_learned(ref)]
            operand = self._as_data((names or [r for r in refs if self._is_learned(r)])[0].value)
            assert operand is not None
            return Data(operand.draft, call.results[0] or 0)
        operands = [self._as_data(ref.value) for ref in refs]
        operation = {
            Product: Operation.MATMUL, Einsum: Operation.MATMUL, Sum: Operation.ADD,
            Multiply: Operation.MULTIPLY, Join: Operation.CONCAT,
        }.get(type(rule))  # fmt: skip
        if operation is None:
            assert isinstance(rule, Plain)
            operation = rule.operation
        return self._node(call, operation, [o for o in operands if o is not None])

    def _is_learned(self, ref: Ref) -> bool:
        return isinstance(self._state(ref.value), Learned)

    def _without_data(self, call: Call, rule: Rule, states: list[State]) -> State:
        learned = [s for s in states if isinstance(s, Learned)]
        if not learned:
            return _fixed(states)
        uses = tuple({use.name: use for state in learned for use in state.uses}.values())
        looked_up = isinstance(rule, Plain) and rule.operation is Operation.GATHER
        if len(learned) == 1 and (isinstance(rule, Transparent) or looked_up):
            return Learned(tuple(_seen_through(use, call) for use in uses), learned[0].call)
        return Learned(uses, self.call_number)

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

    # -- rules --------------------------------------------------------------------------------------------

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
            return list(_refs(call.arguments.values()))
        return list(_refs(call.arguments.get(name) for name in names))

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
            height, width = self.maps[data[0].value]
            uses = [_over_map(use, height, width) for use in uses]
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
        operation, settings = _convolution(call, rule.operation, self.recording)
        return self._node(call, operation, [*self._operands(data), *computed], uses, **settings)

    def _weight_uses(self, uses: Sequence[Use], rule: Layer, call: Call) -> Iterator[Use]:
        """Give roles to the parameters that a weight is made of: the largest is the weight itself."""
        if rule.operation is Operation.RECURRENT:
            yield from (use.as_role(Role.WEIGHT if len(use.shape) > 1 else Role.BIAS) for use in uses)
            return
        largest = max((use.numel for use in uses if use.role is None), default=0)
        for use in uses:
            if rule.role is not Role.WEIGHT or use.numel == largest or not use.is_vector:
                transposed = rule.operation is Operation.TRANSPOSED_CONV or _is_transposed_convolution(call)
                if rule.operation is Operation.LINEAR and len(use.shape) == 2:
                    transposed = use.order == (1, 0)
                yield use.as_role(rule.role, transposed)
            else:
                yield use.as_role(Role.SCALE)

    def _product(self, call: Call, rule: Product | Einsum) -> State:
        if isinstance(rule, Einsum):
            factors, added = list(_refs([call.arguments["tensors"]])), []
        else:
            factors, added = self._named(call, (rule.left, rule.right)), self._named(call, (rule.added,))
            added = added if rule.added else []
        learned = [ref for ref in factors if self._is_learned(ref)]
        data = [ref for ref in factors if not self._is_learned(ref)]
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
        summed = _summed_dimension(call, rule, ref, len(self.recording.values[ref.value].shape))
        for use in self._learned([ref]):
            if len(use.shape) != 2:
                yield use, False
            elif use.order is not None and len(use.order) == 2 and summed is not None:
                yield use, use.order[summed] == 0
            else:
                shape = self.recording.values[ref.value].shape
                yield use, summed is not None and shape[summed] == use.shape[0] != use.shape[1]

    def _sum(self, call: Call, names: Sequence[str], vector: Role) -> State:
        return self._combine(call, self._named(call, names), vector)

    def _plus(self, call: Call, first: State, added: Sequence[Ref]) -> State:
        """Return a product with something added to it."""
        assert isinstance(first, Data)
        operands = [*self._data_only(added), Operand(first.draft, first.numbers)]
        return self._added(call, operands, self._learned(added), Role.BIAS)

    def _combine(self, call: Call, refs: Sequence[Ref], vector: Role) -> State:
        return self._added(call, self._data_only(refs), self._learned(refs), vector)

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
        operation, settings = _pooling(call, rule.operation, self.recording)
        return self._node(call, operation, operands, uses, **settings)

    def _attention(self, call: Call) -> tuple[list[Operand], list[Use]]:
        heads = self._named(call, ("query", "key", "value"))
        bias = self._named(call, ("attn_mask", "attn_bias"))
        operands = [o for ref in heads if (o := self._as_data(ref.value)) is not None] + self._data_only(bias)
        return operands, [use.as_role(Role.TABLE) for use in self._learned(bias)]


def _refs(values: Iterable[Any]) -> Iterator[Ref]:
    for value in values:
        if isinstance(value, Ref):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _refs(value)


def _fixed(states: Iterable[State]) -> Fixed:
    return Fixed(frozenset(i for state in states if isinstance(state, Fixed) for i in state.inputs))


def _raw_role(use: Use) -> Role:
    return Role.SCALE if use.numel == 1 else Role.TABLE


def _over_map(use: Use, height: int, width: int) -> Use:
    """Return a linear layer's use of a weight, (out, in), whose inputs are a flattened map."""
    fits = len(use.shape) == 2 and use.role is Role.WEIGHT and not use.transposed
    return replace(use, spatial=(height, width)) if fits and use.shape[1] % (height * width) == 0 else use


def _takes_bias(draft: Draft) -> bool:
    roles = {use.role for use in draft.uses}
    return draft.operation in TAKES_BIAS and bool(roles) and Role.BIAS not in roles


def _seen_through(use: Use, call: Call) -> Use:
    """Return a use after a call that only moves its elements."""
    name, order = operator_name(call.operator), use.order
    if order is None or name in SAME_DIMENSIONS:
        return use
    new: tuple[int, ...] | None = None
    if name in PERMUTATIONS:
        rank = len(order)
        if name == "permute":
            dims = [d % rank for d in call.arguments["dims"]]
        else:
            dims = list(range(rank))
            named = [
                v for k, v in call.arguments.items() if k.startswith(("dim", "axis")) and isinstance(v, int)
            ]
            a, b = (named or [-2, -1])[:2] if rank > 1 else (0, 0)
            dims[a], dims[b] = dims[b], dims[a]
        new = tuple(order[d] for d in dims)
    return Use(use.name, use.shape, new, use.role, use.transposed)


def _summed_dimension(call: Call, rule: Product | Einsum, ref: Ref, rank: int) -> int | None:
    """Return which dimension of a factor is summed over, None if there is not exactly one."""
    if isinstance(rule, Product):
        return 0 if rank == 1 else rank - 1 if call.arguments.get(rule.left) == ref else rank - 2
    terms, _, result = call.arguments["equation"].replace(" ", "").partition("->")
    refs = list(_refs([call.arguments["tensors"]]))
    letters = terms.split(",")[refs.index(ref)]
    dropped = [i for i, letter in enumerate(letters) if letter.isalpha() and letter not in result]
    return dropped[0] if len(dropped) == 1 and "." not in letters else None


def _first(value: Any, default: int = 1) -> int:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    return max((n for n in numbers if isinstance(n, int)), default=default)


def _is_transposed_convolution(call: Call) -> bool:
    return call.arguments.get("transposed") is True


def _convolution(call: Call, operation: Operation, recording: Recording) -> tuple[Operation, dict[str, int]]:
    """Return a convolution's exact kind and its settings."""
    if operation not in (Operation.CONV, Operation.TRANSPOSED_CONV):
        return operation, {}
    arguments = call.arguments
    groups = arguments.get("groups", 1)
    if _is_transposed_convolution(call):
        operation = Operation.TRANSPOSED_CONV
    weight = recording.values[arguments["weight"].value].shape
    if operation is Operation.CONV and groups > 1 and weight[1] == 1:
        operation = Operation.DEPTHWISE_CONV
    stride, dilation = _first(arguments.get("stride", 1)), _first(arguments.get("dilation", 1))
    return operation, {"groups": groups, "stride": stride, "dilation": dilation}


def _pooling(call: Call, operation: Operation, recording: Recording) -> tuple[Operation, dict[str, int]]:
    """Return a pooling's exact kind and its settings: the average over everything is a mean."""
    if operation not in (Operation.MAX_POOL, Operation.AVERAGE_POOL):
        return operation, {}
    arguments = call.arguments
    if "output_size" in arguments:
        whole = _first(arguments["output_size"]) == 1
        return (Operation.MEAN if whole and operation is Operation.AVERAGE_POOL else operation), {}
    kernel = _first(arguments.get("kernel_size", 1))
    settings = {"kernel": kernel, "stride": _first(arguments.get("stride"), kernel)}
    return operation, settings | {"dilation": _first(arguments.get("dilation", 1))}
