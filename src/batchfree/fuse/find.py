"""Which Group Norms of a model can take over the addition and the activation that follow them.

A module's forward is traced by torch.fx with every module that it calls as a leaf, so only what the
module itself writes down is looked at and rewritten; the modules that it calls stay modules.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from batchfree.fuse import nodes
from batchfree.nn import GroupNorm
from batchfree.ops.activations import Activation

_METHOD = "batchfree.method"


@dataclass(frozen=True)
class Fusion:
    """What one call of a Group Norm takes over, or why nothing.

    Attributes:
        path: of the norm layer.
        caller: path of the module whose forward calls it; "" is the model itself.
        activation: what follows, by name; None where none does.
        residual: whether another tensor is added in between.
        reason: why nothing is fused; "" where something is.
    """

    path: str
    caller: str
    activation: Activation | None = None
    residual: bool = False
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"{self.path}: left, {self.reason}"
        parts = ["residual"] * self.residual + [self.activation or ""]
        return f"{self.path}: + {' + '.join(filter(None, parts))}"


@dataclass
class Match:
    """A Group Norm and, in its caller's graph, what it takes over.

    Attributes:
        fusion: what it is.
        layer: the norm.
        call: the node that calls it; None where the caller has no graph.
        absorbed: the nodes that the fused call does the work of, in order, the last one's value
            being its result. Empty where nothing is fused, or what the layer itself holds.
        residual: the node that is added.
    """

    fusion: Fusion
    layer: nn.GroupNorm
    call: fx.Node | None = None
    absorbed: list[fx.Node] = field(default_factory=list)
    residual: fx.Node | None = None


@dataclass
class Caller:
    """A module that calls Group Norms.

    Attributes:
        module: itself.
        graph: of its forward; None where that cannot be traced.
        matches: one for each call of a Group Norm.
    """

    module: nn.Module
    graph: fx.Graph | None
    matches: list[Match]


def find_fusions(model: nn.Module) -> list[Fusion]:
    """What `batchfree.fuse` does to a model, layer by layer.

    Args:
        model: any module; it is not changed.

    Returns:
        One entry for each call of a Group Norm (`torch.nn.GroupNorm` or a subclass), in the order
        of the modules that call.

    Example:
        >>> import torch
        >>> from batchfree.fuse import find_fusions
        >>> net = torch.nn.Sequential(torch.nn.GroupNorm(2, 8), torch.nn.ReLU())
        >>> print(*find_fusions(net))
        0: + relu
    """
    callers = find_callers(copy.deepcopy(model))
    return [match.fusion for caller in callers for match in caller.matches]


def find_callers(model: nn.Module) -> list[Caller]:
    """The modules that call Group Norms, with what each call takes over."""
    callers = []
    for path, module in model.named_modules():
        below = [m for m in module.modules() if isinstance(m, nn.GroupNorm)]
        if not below or isinstance(module, nn.GroupNorm):
            continue
        graph, reason = traced(module)
        matches = []
        for call in graph.nodes if graph else ():
            layer = nodes.module_of(call, module)
            if isinstance(layer, nn.GroupNorm):
                matches.append(_match(call, layer, module, path))
        called = {id(match.layer) for match in matches}
        for name, layer in module.named_children():
            if isinstance(layer, nn.GroupNorm) and id(layer) not in called:
                matches.append(_alone(layer, _join(path, name), path, reason))
        callers.append(Caller(module, graph, matches))
    _keep_what_is_called_once(model, callers)
    return [caller for caller in callers if caller.matches]


def _keep_what_is_called_once(model: nn.Module, callers: list[Caller]) -> None:
    matches = [match for caller in callers for match in caller.matches]
    calls = Counter(id(match.layer) for match in matches)
    places = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    for match in matches:
        once = calls[id(match.layer)] == 1 and places[id(match.layer)] == 1
        if not once and not match.fusion.reason:
            fusion = replace(match.fusion, activation=None, residual=False)
            match.fusion = replace(fusion, reason="it is called in several places")
            match.absorbed, match.residual = [], None


class _Tracer(fx.Tracer):
    """Every module is a leaf; what public method of the root calls it is noted in its node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Yes."""
        return True

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        """fx's own, with the method's name where it is not `forward`."""
        node = super().create_node(kind, *args, **kwargs)
        frame = sys._getframe(1)
        while kind == "call_module" and frame.f_code is not fx.Tracer.trace.__code__:
            name = frame.f_code.co_name
            own = frame.f_locals.get("self") is self.root
            if own and name != "forward" and not name.startswith("_"):
                node.meta[_METHOD] = name
            if frame.f_back is None:
                break
            frame = frame.f_back
        return node


def traced(module: nn.Module) -> tuple[fx.Graph | None, str]:
    """The graph of a module's forward, or the reason why it has none that is sure to hold."""
    for p in inspect.signature(module.forward).parameters.values():
        if p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            return None, "its caller's forward has optional arguments"
    if "forward" in vars(module):
        return None, "its caller's forward was replaced on the instance"
    modes = [(m, m.training) for m in module.modules()]
    before = _state(module)
    graphs = []
    try:
        for mode in (True, False):
            module.train(mode)
            graphs.append(_Tracer().trace(module))
    except Exception as error:
        words = " ".join(str(error).split())[:80]
        return None, f"its caller's forward cannot be traced ({type(error).__name__}: {words})"
    finally:
        for m, training in modes:
            m.training = training
    if _state(module) != before:
        return None, "its caller's forward changes the module"
    if str(graphs[0]) != str(graphs[1]):
        return None, "its caller's forward depends on the mode, train or eval"
    if any("_tensor_constant" in str(n.target) for n in graphs[0].nodes if n.op == "get_attr"):
        return None, "its caller's forward makes tensors of its own"
    return graphs[0], ""


def _state(module: nn.Module) -> dict[str, object]:
    """What a forward may change of a module itself: its plain values, and its tensors' versions."""
    plain = {k: v for k, v in vars(module).items() if isinstance(v, int | float | str | None)}
    held = {**vars(module), **module._buffers, **module._parameters}
    versions = {k: (id(t), t._version) for k, t in held.items() if isinstance(t, torch.Tensor)}
    return {**plain, **versions, "training": None}


def _alone(layer: nn.GroupNorm, name: str, path: str, reason: str) -> Match:
    """A norm whose call is not seen; what it holds itself can be fused."""
    taken, activation = own_activation(layer)
    if activation is not None and taken == "":
        return Match(Fusion(name, path, activation), layer)
    return Match(Fusion(name, path, reason=taken or reason or "its caller does not call it"), layer)


def _match(call: fx.Node, layer: nn.GroupNorm, module: nn.Module, path: str) -> Match:
    match = _following(call, layer, module, path)
    method = call.meta.get(_METHOD)
    # Called by itself, that method would do twice what the norm does: to ReLU alone it is the same.
    twice = match.absorbed and (match.residual is not None or match.fusion.activation != "relu")
    if method is not None and twice:
        reason = f"it is called in {method}, which others may call"
        return Match(Fusion(match.fusion.path, path, reason=reason), layer, call)
    return match


def _following(call: fx.Node, layer: nn.GroupNorm, module: nn.Module, path: str) -> Match:
    name = _join(path, str(call.target))
    taken, activation = own_activation(layer)
    if taken:
        return Match(Fusion(name, path, reason=taken), layer, call)
    if activation is not None:
        return Match(Fusion(name, path, activation), layer, call)
    if len(call.args) != 1 or call.kwargs:
        return Match(Fusion(name, path, reason="it has a residual already"), layer, call)
    chain = nodes.following(call, module)
    if not chain:
        return Match(Fusion(name, path, reason="nothing follows, or several"), layer, call)
    activation = nodes.activation_of(chain[-1], module)
    if activation is not None:
        return Match(Fusion(name, path, activation), layer, call, chain)
    residual = nodes.added(chain[-1], [call, *chain[:-1]])
    if residual is None:
        return Match(Fusion(name, path, reason="no addition or activation follows"), layer, call)
    if nodes.changed_before(call.args[0], call, chain[-1], module):
        return Match(Fusion(name, path, reason="its input is changed in place"), layer, call)
    after = nodes.following(chain[-1], module)
    activation = nodes.activation_of(after[-1], module) if after else None
    if activation is not None:
        chain = [*chain, *after]
    return Match(Fusion(name, path, activation, residual=True), layer, call, chain, residual)


def own_activation(layer: nn.GroupNorm) -> tuple[str, Activation | None]:
    """Why a norm cannot be fused, and the activation that it holds as a module of its own.

    timm's GroupNormAct and what `batchfree.convert` makes of its norms hold `drop` and `act`.
    """
    if getattr(layer, "activation", None) is not None:
        return "it has an activation already", None
    kind = f"{type(layer).__module__}.{type(layer).__name__}"
    if not (type(layer) is nn.GroupNorm or isinstance(layer, GroupNorm) or kind in TIMM):
        return f"{kind} may compute something else", None
    modules = [m for m in layer.children() if type(m) is not nn.Identity]
    activations = [nodes.plain_activation(m) for m in modules]
    if len(activations) > 1 or None in activations:
        return "it holds modules that are no known activation", None
    return "", activations[0] if activations else None


TIMM = (
    "timm.layers.norm.GroupNorm",
    "timm.layers.norm.GroupNorm1",
    "timm.layers.norm_act.GroupNormAct",
    "timm.layers.norm_act.GroupNorm1Act",
)
"""Kinds that compute a Group Norm, then what they hold."""


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
