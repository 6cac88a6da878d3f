"""What is timed: batchfree, PyTorch eager and compiled, others' kernels where they are installed,
BatchNorm, and a copy of the same bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from batchfree._checks import suggest
from batchfree._errors import ConfigError
from batchfree.bench.inputs import Inputs, Setting
from batchfree.ops import backend, group_norm
from batchfree.ops.activations import ACTIVATIONS
from batchfree.ops.backend import BACKENDS, select

Run = Callable[[int], None]
"""Runs a peer so many times."""

Function = Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]

EAGER, FLOOR = "eager", "floor"
DEFAULT = (EAGER, "batchfree", "compile", "batch_norm", FLOOR)
OTHERS = ("compile-max", "liger", "apex")


def peer_names() -> tuple[str, ...]:
    """Every peer: the default ones, others' kernels, then a backend of ours by its name."""
    return (*DEFAULT, *OTHERS, *BACKENDS)


def make_peer(name: str, setting: Setting) -> Callable[[Inputs], Run]:
    """A peer, to be given inputs, and then ready to run; a first run may take long to compile.

    Raises:
        ConfigError: there is no such peer, or it is not installed.
    """
    if name == FLOOR:
        return lambda inputs: _copy(setting)
    if name == "batch_norm":
        return lambda inputs: _step(_batch_norm(setting, inputs), setting, inputs)
    if name in BACKENDS:
        function, around = _batchfree(setting), partial(backend, name)
        return lambda inputs: _step(function, setting, inputs, around)
    if name not in _MAKERS:
        known = peer_names()
        raise ConfigError(
            f"there is no peer {name!r}{suggest(name, known)}; peers: {', '.join(known)}"
        )
    function = _MAKERS[name](setting)
    return lambda inputs: _step(function, setting, inputs)


def serving_backend(name: str, inputs: Inputs) -> str | None:
    """The backend of `batchfree.group_norm` that a peer runs; None for other peers."""
    if name in BACKENDS:
        return name
    return select(inputs.x).name if name == "batchfree" else None


def _finish(y: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    """Adds in place and applies ReLU in place, as torchvision's models do."""
    if residual is not None:
        y += residual
    if activation == "relu":
        return F.relu(y, inplace=True)
    return y if activation is None else ACTIVATIONS[activation](y)


def _eager(setting: Setting) -> Function:
    groups, activation = setting.case.groups, setting.case.activation

    def run(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        return _finish(F.group_norm(x, groups, weight, bias), residual, activation)

    return run


def _compiled(setting: Setting, mode: str = "default") -> Function:
    import torch._inductor.config

    if setting.device == "cpu":
        torch._inductor.config.compile_threads = 1  # no pool of compilers beside what is timed
    # It says that there is no CUDA toolkit, which nobody asked for.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    if mode == "default":
        torch.compiler.reset()  # earlier settings' graphs count against its limit
    return torch.compile(_eager(setting), dynamic=False, fullgraph=True, mode=mode)


def _liger(setting: Setting) -> Function:
    """Liger-Kernel's Group Norm: contiguous, without activation, residual or three dimensions."""
    try:
        from liger_kernel.ops.group_norm import LigerGroupNormFunction
    except ImportError:
        raise ConfigError("liger is not installed; pip install liger-kernel") from None
    groups, activation = setting.case.groups, setting.case.activation

    def run(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        y = LigerGroupNormFunction.apply(x.contiguous(), weight, bias, x.shape[1], groups, 1e-5)
        return _finish(y, residual, activation)

    return run


def _apex(setting: Setting) -> Function:
    """apex's Group Norm for channels last, with SiLU inside."""
    try:
        from apex.contrib.group_norm.group_norm import cuda_group_norm_nhwc_one_pass
    except ImportError:
        raise ConfigError("apex.contrib.group_norm is not installed") from None
    groups, activation = setting.case.groups, setting.case.activation
    inside = "silu" if activation == "silu" and not setting.case.residual else ""

    def run(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        y = cuda_group_norm_nhwc_one_pass(x, groups, weight, bias, 1e-5, inside)
        return y if inside else _finish(y, residual, activation)

    return run


def _batch_norm(setting: Setting, inputs: Inputs) -> Function:
    activation, mean, variance = setting.case.activation, inputs.mean, inputs.variance

    def run(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.batch_norm(x, mean, variance, weight, bias, training=True)
        return _finish(y, residual, activation)

    return run


def _batchfree(setting: Setting) -> Function:
    groups, activation = setting.case.groups, setting.case.activation

    def run(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm(
            x,
            groups,
            weight,
            bias,
            activation=activation,  # type: ignore[arg-type]
            residual=residual,
        )

    return run


_MAKERS: dict[str, Callable[[Setting], Function]] = {
    EAGER: _eager,
    "batchfree": _batchfree,
    "compile": _compiled,
    "compile-max": partial(_compiled, mode="max-autotune-no-cudagraphs"),
    "liger": _liger,
    "apex": _apex,
}


def _step(
    function: Function,
    setting: Setting,
    inputs: Inputs,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Run:
    """Forward under no_grad, or forward and the gradients of every input."""
    arguments = (inputs.x, inputs.residual, inputs.weight, inputs.bias)

    def forward(times: int) -> None:
        with torch.no_grad(), around():
            for _ in range(times):
                function(*arguments)

    def forward_backward(times: int) -> None:
        leaves, dy = inputs.leaves, inputs.dy
        with around():
            for _ in range(times):
                torch.autograd.grad(function(*arguments), leaves, dy)

    return forward if setting.mode == "forward" else forward_backward


def _copy(setting: Setting) -> Run:
    """A copy into warm memory that moves the bytes of the floor: of k bytes it reads and writes k.

    It stands for what this machine's memory allows the same threads.
    """
    elements = max(setting.floor_bytes // 8, 1)
    source = torch.ones(elements, device=setting.device)
    target = torch.zeros(elements, device=setting.device)

    def run(times: int) -> None:
        for _ in range(times):
            target.copy_(source)

    return run
