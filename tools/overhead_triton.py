import time

import torch
import torch.nn.functional as F

import batchfree
from batchfree.ops.fused import backward_op, forward_op
from batchfree.ops.triton.forward import group_norm as direct
from batchfree.ops.triton.given import given


def us(f, n=2000):
    for _ in range(200):
        f()
    torch.cuda.synchronize()
    best = 1e9
    for _ in range(5):
        t = time.perf_counter()
        for _ in range(n):
            f()
        best = min(best, (time.perf_counter() - t) / n * 1e6)
        torch.cuda.synchronize()
    return best


x = torch.randn(1, 32, 2, 2, device="cuda")
w = torch.ones(32, device="cuda")
b = torch.zeros(32, device="cuda")
with torch.no_grad():
    print("eager gn", us(lambda: F.group_norm(x, 8, w, b)))
    print("eager gn+relu", us(lambda: F.relu(F.group_norm(x, 8, w, b), inplace=True)))
    print("public", us(lambda: batchfree.group_norm(x, 8, w, b, activation="relu")))
    print("op", us(lambda: forward_op(x, w, b, None, 8, 1e-5, 1)))
    print("direct", us(lambda: direct(x, w, b, None, 8, 1e-5, 1)))
    print("given x4", us(lambda: (given(x), given(w), given(b), given(None))))
    print(
        "empty_like+stat",
        us(
            lambda: (
                torch.empty_like(x, memory_format=torch.contiguous_format),
                torch.empty((3, 1, 8), dtype=torch.float32, device=x.device),
            )
        ),
    )
    from batchfree.ops.triton.forward import _plan_forward

    g = (given(x), given(w), given(b), None, 8, 1)
    print("plan lookup", us(lambda: _plan_forward(*g)))
    p = _plan_forward(*g)
    y, s = direct(x, w, b, None, 8, 1e-5, 1)
    hw, x_n, r_n = p.layout.numbers
    print("launch", us(lambda: p.resident(0, x, w, b, None, y, s, hw, x_n, r_n, 8, 1e-5)))
    dy = torch.ones_like(x)
    print("backward op", us(lambda: backward_op(dy, x, w, b, None, None, s, 8, 1, 0, 13)))
    from batchfree.ops.triton.backward import group_norm_backward as bdirect

    print("backward direct", us(lambda: bdirect(dy, x, w, b, None, None, s, 8, 1, 0, 13)))
x.requires_grad_()
w.requires_grad_()
b.requires_grad_()
dy = torch.ones_like(x)


def fb(f):
    y = f()
    torch.autograd.grad(y, (x, w, b), dy)


print("eager f", us(lambda: F.relu(F.group_norm(x, 8, w, b), inplace=True)))
print("ours f", us(lambda: batchfree.group_norm(x, 8, w, b, activation="relu")))
print("eager fb", us(lambda: fb(lambda: F.relu(F.group_norm(x, 8, w, b), inplace=True)), 1000))
print("ours fb", us(lambda: fb(lambda: batchfree.group_norm(x, 8, w, b, activation="relu")), 1000))


class Trivial(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w, b)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):
        x, w, b = ctx.saved_tensors
        return dy, w, b


print("trivial function f", us(lambda: Trivial.apply(x, w, b)))
print("trivial function fb", us(lambda: fb(lambda: Trivial.apply(x, w, b)), 1000))
import cProfile
import pstats

pr = cProfile.Profile()
pr.enable()
for _ in range(2000):
    fb(lambda: batchfree.group_norm(x, 8, w, b, activation="relu"))
pr.disable()
pstats.Stats(pr).sort_stats("tottime").print_stats(14)
