"""Reading a recording: the state of every value, call by call, and values as operands of nodes.

Each value is one of three things: data (a node made it), learned (parameters alone determine it, such as a
weight with its norm taken out) or fixed (neither does). Learned values are absorbed by the first layer that
uses them; where data are expected they become nodes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from hypernets.architecture.calls import values_in
from hypernets.architecture.drafts import Data, Draft, Fixed, Learned, Operand, State, Use
from hypernets.architecture.graph import Operation, Role
from hypernets.architecture.recording import Call, Recording, Ref
from hypernets.architecture.vocabulary import Rule, Transparent, operator_name, rule_of
from metainit.errors import GraphError


class Reading(ABC):
    """Reads the calls of a recording in order, and keeps the state of every value and the drafts so far."""

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

    def _call(self, call: Call) -> None:
        refs = list(values_in(call.arguments.values()))
        states = self._states(refs)
        results = [value for value in call.results if value is not None]
        rule = rule_of(call.operator)
        if isinstance(rule, Transparent):
            self._follow_map(call, rule, results)
        if any(self.recording.values[value].floating for value in results):
            state = self._computed(call, rule, refs, lift=False)
        else:
            state = fixed(states)
        for value in results:
            floating = self.recording.values[value].floating
            if isinstance(state, Data) and floating:
                numbers = state.numbers if len(results) == 1 else value
                self.states[value] = Data(state.draft, numbers)
            else:
                self.states[value] = state if floating else fixed(states)

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

    def _computed(self, call: Call, rule: Rule, refs: list[Ref], lift: bool) -> State:
        """Return what the call's rule says, where its arguments are of the form that the rule knows.

        Raises:
            GraphError: they are not; names the call.
        """
        try:
            return self._result(call, rule, refs, self._states(refs), lift)
        except (LookupError, AttributeError, TypeError) as error:  # an operator may be called in many forms
            raise self._unexpected(call, f"{type(error).__name__}: {error}") from error

    def _unexpected(self, call: Call, why: str) -> GraphError:
        """Return the error that says which call is of no form that the rules know."""
        shapes = [self.recording.values[value].shape for value in call.results if value is not None]
        number = next(i for i, other in enumerate(self.recording.calls) if other is call)
        return GraphError(
            f"the call of {operator_name(call.operator)!r} ({call.operator}, number {number} of the forward "
            f"pass, results of shape {', '.join(map(str, shapes))}) has a form that the tracer does not "
            f"know: {why}. Write that step with other operators"
        )

    @abstractmethod
    def _result(self, call: Call, rule: Rule, refs: list[Ref], states: list[State], lift: bool) -> State:
        """Return the state of what a call computes; with `lift`, as a node whatever it is computed from."""

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
            lifted = self._computed(call, rule_of(call.operator), refs, lift=True)
            if not isinstance(lifted, Data):
                raise self._unexpected(call, "what it computes of learned values is no node")
            self.lifted[earlier] = lifted.draft

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

    def _is_learned(self, ref: Ref) -> bool:
        return isinstance(self._state(ref.value), Learned)


def _raw_role(use: Use) -> Role:
    return Role.SCALE if use.numel == 1 else Role.TABLE


def fixed(states: Iterable[State]) -> Fixed:
    """Return a fixed value that comes from the same inputs of integers as some states."""
    return Fixed(frozenset(i for state in states if isinstance(state, Fixed) for i in state.inputs))
