"""One vocabulary for both tracers: what an ATen operator is in the graph.

A rule belongs to an operator's name without its overload and without the underscore of a call in place.
Operators without a rule become nodes of kind `other`. Rules say nothing of what depends on neither a
floating-point input nor a parameter (positions, masks, comparisons, everything of integers): that
never becomes a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from torch._ops import OpOverload

from hypernets.architecture.graph import Operation, Role


@dataclass(frozen=True)
class Transparent:
    """Contracted: the result is the argument `data` in another form.

    `keeps`: it holds the same numbers in the same places, up to their type.
    """

    data: str = "self"
    keeps: bool = False


@dataclass(frozen=True)
class Constant:
    """Fixed: the result has the shape of an argument at most."""


@dataclass(frozen=True)
class Plain:
    """A node whose operands are all tensor arguments in order, or those named.

    A parameter among them is carried by the node in the role `absorbs`, or becomes a node of its own.
    `positions`: arguments of integers that say where the data go.
    """

    operation: Operation
    data: tuple[str, ...] = ()
    absorbs: Role | None = None
    positions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A node that carries parameters: `weight` in `role`, and `bias`."""

    operation: Operation
    data: tuple[str, ...] = ("input",)
    weight: tuple[str, ...] = ("weight",)
    bias: tuple[str, ...] = ("bias",)
    role: Role = Role.WEIGHT


@dataclass(frozen=True)
class Product:
    """A matrix product of two arguments, with a third one added; a layer where one of them is a parameter."""

    left: str
    right: str
    added: str = ""


@dataclass(frozen=True)
class Einsum:
    """A product of several arguments by index letters."""


@dataclass(frozen=True)
class Sum:
    """Elementwise, of several arguments; contracted where only one of them is data."""

    data: tuple[str, ...] = ("self", "other")
    one_dimensional: Role = Role.BIAS


@dataclass(frozen=True)
class Multiply:
    """Elementwise, of several arguments; contracted where only one of them is data."""

    data: tuple[str, ...] = ("self", "other")
    divisor: str = ""


@dataclass(frozen=True)
class Join:
    """Arguments side by side; contracted where only one of them is data."""

    data: tuple[str, ...] = ("tensors",)


Rule = Transparent | Constant | Plain | Layer | Product | Einsum | Sum | Multiply | Join
OTHER = Plain(Operation.OTHER)

_NAMES: dict[Rule, str] = {
    # The same numbers in the same places.
    Transparent(keeps=True): """
        alias detach clone contiguous to _to_copy type_as lift lift_fresh
        lift_fresh_copy _conj conj resolve_conj resolve_neg positive neg negative requires_grad
        _conj_physical _autocast_to_reduced_precision _autocast_to_full_precision nan_to_num
    """,
    Transparent("input", keeps=True): """
        dropout native_dropout feature_dropout alpha_dropout feature_alpha_dropout
    """,
    # The same numbers elsewhere, or some of them.
    Transparent(): """
        view _unsafe_view reshape _reshape_alias view_as reshape_as expand expand_as permute transpose t
        swapaxes swapdims movedim moveaxis numpy_T mT mH adjoint squeeze unsqueeze flatten unflatten ravel
        slice narrow select unbind split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk
        unsafe_split_with_sizes as_strided diagonal diag diag_embed tril triu flip roll rot90 repeat tile
        repeat_interleave unfold im2col col2im constant_pad_nd pad reflection_pad1d reflection_pad2d
        reflection_pad3d replication_pad1d replication_pad2d replication_pad3d _pad_circular
        masked_fill masked_select view_as_real view_as_complex real imag channel_shuffle
        native_channel_shuffle broadcast_to atleast_1d atleast_2d atleast_3d
        resize_ fliplr flipud renorm embedding_renorm
        squeeze_copy slice_copy select_copy view_copy sort topk
    """,
    Transparent("src", keeps=True): "copy",
    Transparent("input"): "_pack_padded_sequence",
    Transparent("data"): "_pad_packed_sequence",
    Constant(): """
        zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones
        new_empty new_full new_empty_strided fill zero uniform normal bernoulli exponential cauchy
        log_normal geometric random multinomial poisson
    """,
    # Layers.
    Layer(Operation.LINEAR): "linear",
    Layer(Operation.LINEAR, data=("input1", "input2")): "bilinear",
    Layer(Operation.CONV): """
        convolution _convolution convolution_overrideable conv1d conv2d conv3d _conv_depthwise2d
        thnn_conv2d slow_conv3d mkldnn_convolution
    """,
    Layer(Operation.TRANSPOSED_CONV): "conv_transpose1d conv_transpose2d conv_transpose3d",
    Layer(Operation.EMBEDDING, data=("indices",), bias=(), role=Role.TABLE): """
        embedding embedding_bag _embedding_bag _embedding_bag_forward_only
    """,
    Layer(Operation.RECURRENT, data=("input", "data"), weight=("params",), bias=()): """
        lstm gru rnn_tanh rnn_relu
    """,
    Layer(Operation.RECURRENT, weight=("w_ih", "w_hh"), bias=("b_ih", "b_hh")): """
        lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    """,
    Layer(Operation.BATCH_NORM, role=Role.NORM_WEIGHT): """
        batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
        _native_batch_norm_legit_functional _batch_norm_with_update _batch_norm_no_update
        cudnn_batch_norm miopen_batch_norm _batch_norm_impl_index
    """,
    Layer(Operation.LAYER_NORM, role=Role.NORM_WEIGHT): "layer_norm native_layer_norm",
    Layer(Operation.GROUP_NORM, role=Role.NORM_WEIGHT): "group_norm native_group_norm instance_norm",
    Layer(Operation.RMS_NORM, role=Role.NORM_WEIGHT): "rms_norm _fused_rms_norm",
    Layer(Operation.LEAKY_RELU, data=("self",), bias=(), role=Role.SCALE): "prelu _prelu_kernel",
    # Products.
    Product("self", "mat2"): "mm bmm _grouped_mm",
    Product("self", "other"): "matmul",
    Product("self", "vec"): "mv",
    Product("self", "tensor"): "dot",
    Product("self", "vec2"): "outer ger",
    Product("mat1", "mat2", "self"): "addmm _addmm_activation",
    Product("mat", "vec", "self"): "addmv",
    Product("batch1", "batch2", "self"): "baddbmm addbmm",
    Einsum(): "einsum",
    # Elementwise.
    Sum(): "add sub rsub subtract",
    Sum(one_dimensional=Role.TABLE): "where",
    Sum(("self", "end")): "lerp",
    Sum(("self", "tensor1", "tensor2")): "addcmul addcdiv",
    Multiply(): "mul multiply",
    Multiply(divisor="other"): "div divide true_divide",
    Join(): "cat concat concatenate stack hstack vstack dstack column_stack",
    Join(("self", "src")): "slice_scatter select_scatter diagonal_scatter as_strided_scatter",
    Join(("self", "values")): "index_put _unsafe_index_put _index_put_impl",
    Join(("self", "source")): "masked_scatter",
    # Activations.
    Plain(Operation.RELU, absorbs=Role.SCALE): "relu relu6",
    Plain(Operation.LEAKY_RELU, absorbs=Role.SCALE): "leaky_relu rrelu rrelu_with_noise",
    Plain(Operation.GELU): "gelu",
    Plain(Operation.SILU): "silu",
    Plain(Operation.SIGMOID): "sigmoid hardsigmoid log_sigmoid log_sigmoid_forward",
    Plain(Operation.TANH): "tanh",
    Plain(Operation.SINE): "sin cos sinc",
    Plain(Operation.ACTIVATION, absorbs=Role.SCALE): """
        elu selu celu hardswish hardtanh softplus mish hardshrink softshrink threshold abs exp exp2 expm1
        log log2 log10 log1p sqrt rsqrt square pow reciprocal clamp clamp_min clamp_max clip erf erfc erfinv
        sinh cosh asinh acosh atanh asin acos atan atan2 tan sign sgn maximum minimum fmax fmin
        floor ceil round trunc frac logit xlogy logaddexp heaviside fmod remainder hypot angle
        floor_divide float_power special_erf special_expit
    """,
    Plain(Operation.MULTIPLY): "glu",
    Plain(Operation.SOFTMAX): "softmax _softmax log_softmax _log_softmax _safe_softmax",
    Plain(Operation.ATTENTION, data=("query", "key", "value"), absorbs=Role.TABLE): """
        scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
        _scaled_dot_product_attention_math _scaled_dot_product_cudnn_attention
    """,
    # Neighbourhoods, sizes and places.
    Plain(Operation.MAX_POOL): """
        max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
        max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
        fractional_max_pool2d fractional_max_pool3d max amax min amin median cummax cummin
    """,
    Plain(Operation.AVERAGE_POOL): """
        avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        _adaptive_avg_pool2d _adaptive_avg_pool3d
    """,
    Plain(Operation.MEAN): "mean sum nanmean nansum",
    Plain(Operation.UPSAMPLE): """
        upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
        _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
        upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
        pixel_shuffle pixel_unshuffle max_unpool2d max_unpool3d
    """,
    Plain(Operation.SCATTER, data=("self", "src", "source", "values"), positions=("index",)): """
        scatter scatter_add scatter_reduce index_add index_copy index_reduce segment_reduce
    """,
    Plain(Operation.GATHER, data=("self",), positions=("index", "indices")): """
        index gather index_select take take_along_dim _unsafe_index
    """,
    Plain(Operation.GATHER, data=("input", "grid")): "grid_sampler grid_sampler_2d grid_sampler_3d",
}  # fmt: skip
RULES: Mapping[str, Rule] = {name: rule for rule, names in _NAMES.items() for name in names.split()}


@cache
def operator_name(operator: OpOverload) -> str:
    """Return an operator's name without namespace, overload and the underscore of a call in place."""
    name = operator._schema.name.split("::")[1]
    in_place = operator._schema.is_mutable and name.endswith("_") and not name.endswith("__")
    return name.removesuffix("_") if in_place else name


@cache
def rule_of(operator: OpOverload) -> Rule:
    """Return an operator's rule.

    Example:
        >>> import torch
        >>> rule_of(torch.ops.aten.relu_.default).operation
        <Operation.RELU: 'relu'>
        >>> rule_of(torch.ops.aten.view.default)
        Transparent(data='self', keeps=False)
    """
    if operator.namespace != "aten":
        return OTHER
    return RULES.get(operator_name(operator), OTHER)
