"""`fuse`: the addition and the activation after a Group Norm move into its call."""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from batchfree._errors import ConfigError
from batchfree.convert.layers import BlendNorm
from batchfree.fuse.find import Caller, Match, find_callers, traced
from batchfree.nn import GroupNorm

Module = TypeVar("Module", bound=nn.Module)


def fuse(model: Module) -> Module:
    """A copy of a model whose Group Norms do the addition and the activation that follow them.

    Norm, residual and activation then are one call of `batchfree.GroupNorm`, which reads and writes
    the tensor once and keeps less for the backward. Parameters, their names, the `state_dict`,
    hooks and classes stay; an activation in a `torch.nn.Sequential` becomes an Identity, any other
    caller gets a forward without what was fused, as it stands now (a flag that it reads is not read
    again). Hooks of a fused norm see the activation's output. `batchfree.fuse.find_fusions` tells
    what is fused and why the rest is not.

    Fused are ReLU, SiLU and GELU, as modules, functions or methods, where nothing else uses what
    they take. A sum is taken in the dtype of the norm's input, and `a += b` gives a new tensor. A
    caller whose forward has optional arguments, differs between train and eval, or cannot be traced
    by torch.fx is left as it is.

    Args:
        model: any module with `torch.nn.GroupNorm` or a subclass of ours or timm's; not changed.

    Returns:
        The copy, in the mode and on the device of the model. It can be copied and compiled; to save
        it, save the `state_dict`.

    Raises:
        ConfigError: no module, a scripted one, or one without any Group Norm.

    Example:
        >>> import batchfree, torch
        >>> net = torch.nn.Sequential(torch.nn.GroupNorm(2, 8), torch.nn.ReLU())
        >>> print(batchfree.fuse(net))
        Sequential(
          (0): GroupNorm(2, 8, eps=1e-05, affine=True, bias=True, activation=relu)
          (1): Identity()
        )
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            f"model must be a torch.nn.Module that is not scripted, got {type(model).__name__}"
        )
    if isinstance(model, nn.GroupNorm) or not any(
        isinstance(m, nn.GroupNorm) for m in model.modules()
    ):
        blend = any(isinstance(m, BlendNorm) for m in model.modules())
        what = (
            "collapse its blended layers first (batchfree.convert.collapse), once alpha is 0"
            if blend
            else "convert BatchNorms first (batchfree.convert)"
        )
        raise ConfigError(
            f"{type(model).__name__} calls no GroupNorm, so there is nothing to fuse; {what}"
        )
    model = copy.deepcopy(model)
    for caller in find_callers(model):
        _rewrite(caller)
    return model


def out_of_place(model: Module) -> Module:
    """A copy of a model whose forwards make sums anew where they changed tensors in place.

    `out += identity`, as in torchvision's and timm's ResNets, changes the output of the layer
    before in place, which hooks on that layer forbid: Opacus sets such hooks. Nothing is fused.
    Rewritten are the forwards with an augmented assignment that torch.fx can trace as `fuse` does;
    activation modules that work in place have to be told by `inplace=False`, as
    `batchfree.convert` does.

    Args:
        model: any module; not changed.

    Example:
        >>> import torch, torchvision
        >>> from batchfree.fuse import out_of_place
        >>> model = torchvision.models.resnet18().eval()
        >>> x = torch.randn(2, 3, 64, 64)
        >>> bool((out_of_place(model)(x) == model(x)).all())
        True
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if _assigns_in_place(type(module).forward):
            graph, _ = traced(module)
            if graph is not None:
                _set_forward(module, graph)
    return model


@cache
def _assigns_in_place(forward: Callable[..., Any]) -> bool:
    try:
        source = textwrap.dedent(inspect.getsource(forward))
        return any(isinstance(node, ast.AugAssign) for node in ast.walk(ast.parse(source)))
    except (OSError, TypeError, SyntaxError):  # written in C, or made as the program ran
        return False


def _rewrite(caller: Caller) -> None:
    done = [m for m in caller.matches if not m.fusion.reason]
    for match in done:
        _prepare(match)
    rewritten = [m for m in done if m.absorbed]
    if not rewritten:
        return
    module, graph = caller.module, caller.graph
    assert graph is not None
    if type(module).forward is nn.Sequential.forward:
        for match in rewritten:
            setattr(module, str(match.absorbed[-1].target), nn.Identity())
        return
    for match in rewritten:
        _move(match, graph)
    _set_forward(module, graph)


def _set_forward(module: nn.Module, graph: fx.Graph) -> None:
    graph.lint()
    forward = type(fx.GraphModule(module, graph)).forward
    kind = type(module)
    body = {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__}
    module.__class__ = type(kind.__name__, (kind,), body)


def _prepare(match: Match) -> None:
    """Makes the layer one of ours, with the activation; what it held itself does nothing more."""
    layer = match.layer
    for name, _ in list(layer.named_children()):
        setattr(layer, name, nn.Identity())
    if not isinstance(layer, GroupNorm):
        layer.__class__ = GroupNorm
    layer.activation = match.fusion.activation  # type: ignore[assignment]


def _move(match: Match, graph: fx.Graph) -> None:
    """One call where the last absorbed node stands, in the place of all of them."""
    call, last = match.call, match.absorbed[-1]
    assert call is not None
    with graph.inserting_before(last):
        args = call.args
        if match.residual is not None:
            args = (*args, graph.call_function(like, (match.residual, *args)))
        fused = graph.call_module(str(call.target), args)
    last.replace_all_uses_with(fused)
    for node in (*reversed(match.absorbed), call):
        graph.erase_node(node)


def like(residual: Tensor, x: Tensor) -> Tensor:
    """The residual in x's shape and dtype."""
    if residual.shape == x.shape and residual.dtype == x.dtype:
        return residual
    return residual.to(x.dtype).expand(x.shape)
