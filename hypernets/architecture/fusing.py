"""Several drafts that are one operation spelt out: they become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from hypernets.architecture.drafts import Draft, Operand
from hypernets.architecture.graph import Operation, Role


def fuse(drafts: Sequence[Draft]) -> list[Draft]:
    """Return the drafts with spelt-out operations replaced, in place where the last of their parts was."""
    counts = Counter(id(operand.draft) for draft in drafts for operand in draft.operands)
    for draft in drafts:
        for rule in RULES:
            if rule(draft, counts):
                break
    return list(drafts)


def _become(draft: Draft, operation: Operation, operands: Sequence[Operand]) -> bool:
    draft.operation, draft.name, draft.operands = operation, operation.value, list(operands)
    return True


def _factors(draft: Draft, count: int = 2) -> Sequence[Operand]:
    is_product = draft.operation is Operation.MULTIPLY and draft.name in ("mul", "div", "multiply")
    return draft.operands if is_product and len(draft.operands) == count else ()


def _only(operand: Operand, *names: str) -> Operand | None:
    """Return the only operand of a draft without parameters that one of these operators made."""
    draft = operand.draft
    if draft.name in names and len(draft.operands) == 1 and not draft.uses:
        return draft.operands[0]
    return None


def _gate(draft: Draft, counts: Counter[int]) -> bool:
    """Read x f(x) as SiLU for the sigmoid, as GELU for tanh(x + c x^3) and for the error function."""
    factors = _factors(draft)
    if not factors or draft.uses or draft.name == "div":
        return False
    for x, gate in (factors, factors[::-1]):
        inner = _only(gate, "sigmoid")
        if inner is not None and inner.numbers == x.numbers:
            return _become(draft, Operation.SILU, [x])
        inner = _only(gate, "erf", "special_erf")
        if inner is not None and inner.numbers == x.numbers:
            return _become(draft, Operation.GELU, [x])
        inner = _only(gate, "tanh")
        if inner is not None and _is_cubic(inner, x):
            return _become(draft, Operation.GELU, [x])
        inner = _only(gate, "tanh")
        inner = _only(inner, "softplus") if inner is not None else None
        if inner is not None and inner.numbers == x.numbers:
            return _become(draft, Operation.ACTIVATION, [x])
    return False


def _is_cubic(operand: Operand, x: Operand) -> bool:
    """Whether an operand is x + c x^3, or x (1 + c x^2)."""
    draft = operand.draft
    if draft.operation not in (Operation.ADD, Operation.MULTIPLY) or len(draft.operands) != 2 or draft.uses:
        return False
    for first, second in (draft.operands, draft.operands[::-1]):
        if first.numbers == x.numbers and _is_power(second, x):
            return True
    return False


def _is_power(operand: Operand, x: Operand) -> bool:
    inner = _only(operand, "pow", "square")
    if inner is not None:
        return inner.numbers == x.numbers
    factors = _factors(operand.draft)
    return bool(factors) and all(f.numbers == x.numbers or _is_power(f, x) for f in factors)


def _rms(draft: Draft, counts: Counter[int]) -> bool:
    """Read x / sqrt(mean(x^2)) as RMS norm, and x / |x|, which is the same up to a constant."""
    factors = _factors(draft)
    if not factors:
        return False
    root = "sqrt" if draft.name == "div" else "rsqrt"
    for x, scale in (factors, factors[::-1]):
        mean = _only(scale, root)
        square = _only(mean, "mean") if mean is not None else None
        length = _only(scale, "clamp_min", "clamp", "expand") or scale
        length = _only(length, "linalg_vector_norm", "norm") or length
        is_length = draft.name == "div" and length is not scale and length.numbers == x.numbers
        if is_length or (square is not None and _is_power(square, x)):
            draft.uses = [replace(use, role=Role.NORM_WEIGHT) for use in draft.uses]
            return _become(draft, Operation.RMS_NORM, [x])
    return False


def _norm_weight(draft: Draft, counts: Counter[int]) -> bool:
    """Read a factor right after an RMS norm without one as the norm's weight."""
    if draft.operation is not Operation.MULTIPLY or len(draft.operands) != 1 or not draft.uses:
        return False
    norm = draft.operands[0].draft
    if norm.operation is not Operation.RMS_NORM or norm.uses or counts[id(norm)] != 1:
        return False
    draft.uses = [replace(u, role=Role.NORM_WEIGHT) if u.role is Role.SCALE else u for u in draft.uses]
    return _become(draft, Operation.RMS_NORM, norm.operands)


def _attention(draft: Draft, counts: Counter[int]) -> bool:
    """Read softmax(Q K^T + bias) V as attention, also with a learned bias."""
    if draft.operation is not Operation.MATMUL or len(draft.operands) != 2:
        return False
    weights, value = draft.operands
    if weights.draft.operation is not Operation.SOFTMAX or len(weights.draft.operands) != 1:
        return False
    scores = weights.draft.operands[0]
    bias: list[Operand] = []
    uses = []
    if scores.draft.operation is Operation.ADD and counts[id(scores.draft)] == 1:
        found = [o for o in scores.draft.operands if o.draft.operation is Operation.MATMUL]
        if len(found) != 1:
            return False
        bias = [o for o in scores.draft.operands if o is not found[0]]
        uses, scores = scores.draft.uses, found[0]
    if scores.draft.operation is not Operation.MATMUL or len(scores.draft.operands) != 2:
        return False
    if scores.draft.uses or any(use.role is not Role.TABLE for use in uses):
        return False
    if counts[id(scores.draft)] != 1:
        return False
    draft.uses = list(uses)
    return _become(draft, Operation.ATTENTION, [*scores.draft.operands, value, *bias])


def _flat_concat(draft: Draft, counts: Counter[int]) -> bool:
    """Read what is written piece by piece as one concatenation."""
    if draft.operation is not Operation.CONCAT or not draft.operands:
        return False
    first = draft.operands[0].draft
    if first.operation is not Operation.CONCAT or first.name != draft.name or counts[id(first)] != 1:
        return False
    if draft.name not in ("slice_scatter", "select_scatter", "index_put"):
        return False
    draft.uses = first.uses + draft.uses
    draft.operands = first.operands + draft.operands[1:]
    return True


RULES: Sequence[Callable[[Draft, Counter[int]], bool]] = (
    _gate, _rms, _norm_weight, _attention, _flat_concat,
)  # fmt: skip
