"""What the nodes of a traced forward do: activations, additions, changes in place."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from batchfree.ops.activations import Activation

_FUNCTIONS: dict[Any, Activation] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu_: "relu",
    F.silu: "silu",
    F.gelu: "gelu",
}
_METHODS: dict[Any, Activation] = {"relu": "relu", "relu_": "relu"}
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem)


def module_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """The module that a node calls; None where it calls none."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def plain_activation(module: nn.Module | None) -> Activation | None:
    """The name of an activation module that a norm can take over."""
    if type(module) is nn.ReLU:
        return "relu"
    if type(module) is nn.SiLU:
        return "silu"
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return None


def activation_of(node: fx.Node, root: nn.Module) -> Activation | None:
    """The name of the activation that a node computes."""
    if node.op == "call_module":
        return plain_activation(module_of(node, root))
    options = {k: v for k, v in node.kwargs.items() if k not in ("inplace", "input")}
    found = _METHODS.get(node.target) if node.op == "call_method" else _FUNCTIONS.get(node.target)
    if found == "gelu" and options.keys() <= {"approximate"}:
        return {"none": found, "tanh": "gelu_tanh"}.get(str(options.get("approximate", "none")))  # type: ignore[return-value]
    return None if options else found


def following(node: fx.Node, root: nn.Module) -> list[fx.Node]:
    """The node that alone uses a node's value, after the nn.Identity modules in between.

    Returns:
        Those modules' nodes and the user; nothing where several use it or it leaves the forward.
    """
    chain: list[fx.Node] = []
    while True:
        users = list((chain[-1] if chain else node).users)
        if len(users) != 1 or users[0].op == "output":
            return []
        chain.append(users[0])
        if type(module_of(users[0], root)) is not nn.Identity:
            return chain


def added(node: fx.Node, same: Sequence[fx.Node]) -> fx.Node | None:
    """What a node adds to a value; None where it is no plain sum of it and another tensor.

    Args:
        node: the user.
        same: nodes that have the value.
    """
    if node.target not in _ADDITIONS or node.kwargs or len(node.args) != 2:
        return None
    a, b = node.args
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or a is b:
        return None
    if node.target in (operator.iadd, "add_") and a not in same:
        return None  # whoever else holds that tensor would miss the change
    return b if a in same else a


def changed_before(value: Any, call: fx.Node, until: fx.Node, root: nn.Module) -> bool:
    """Whether a value that `call` takes may be changed in place between it and `until`.

    Any function or method that works in place counts, since what it changes may be a view of the
    value; a module only where it takes the value itself.
    """
    node = call.next
    while node is not until:
        if node.op == "call_module":
            in_place = bool(getattr(module_of(node, root), "inplace", False))
            found = in_place and value in node.args
        else:
            name = str(getattr(node.target, "__name__", node.target))
            found = node.target in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
            found |= bool(node.kwargs.get("inplace"))
        if found:
            return True
        node = node.next
    return False
