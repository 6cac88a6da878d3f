"""BatchNorm over a normalisation batch against torch's own, and against real DDP workers."""

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import batchfree

KINDS = [
    (batchfree.BatchNorm1d, nn.BatchNorm1d, (12, 6)),
    (batchfree.BatchNorm1d, nn.BatchNorm1d, (12, 6, 5)),
    (batchfree.BatchNorm2d, nn.BatchNorm2d, (12, 6, 5, 4)),
    (batchfree.BatchNorm3d, nn.BatchNorm3d, (12, 6, 2, 3, 4)),
]
BITS = dict(rtol=0, atol=0)


def state(bn):
    return {k: v.clone() for k, v in bn.state_dict().items()}


def assert_same_state(a, b, **tolerance):
    for key, value in b.state_dict().items():
        torch.testing.assert_close(a.state_dict()[key], value, **tolerance)


@pytest.mark.parametrize(("ours", "theirs", "shape"), KINDS)
@pytest.mark.parametrize("normalization_batch", [None, 12, 100])
def test_whole_batch_equals_torch(ours, theirs, shape, normalization_batch):
    a = ours(6, normalization_batch=normalization_batch)
    b = theirs(6)
    for _ in range(3):
        x = torch.randn(shape)
        torch.testing.assert_close(a(x), b(x), **BITS)
    assert_same_state(a, b, **BITS)
    torch.testing.assert_close(a.eval()(x), b.eval()(x), **BITS)


@pytest.mark.parametrize(("ours", "theirs", "shape"), KINDS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_chunks_equal_workers_and_rank0_keeps_its_buffers(ours, theirs, shape, momentum):
    a = ours(6, momentum=momentum, normalization_batch=4)
    workers = [theirs(6, momentum=momentum) for _ in range(3)]
    for _ in range(3):
        x = torch.randn(shape)
        want = torch.cat([w(c) for w, c in zip(workers, x.split(4), strict=True)])
        torch.testing.assert_close(a(x), want, **BITS)
    assert_same_state(a, workers[0], **BITS)


def test_average_keeps_the_mean_of_the_workers_buffers():
    a = batchfree.BatchNorm2d(6, normalization_batch=4, running_statistics="average")
    workers = [nn.BatchNorm2d(6) for _ in range(3)]
    for _ in range(5):
        x = torch.randn(12, 6, 5, 4) * 2 + 1
        a(x)
        for w, c in zip(workers, x.split(4), strict=True):
            w(c)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(w, name) for w in workers]).mean(0)
        torch.testing.assert_close(getattr(a, name), mean)
    assert int(a.num_batches_tracked) == 5


def test_gradients_are_those_of_the_workers():
    a = batchfree.BatchNorm2d(6, normalization_batch=4)
    b = nn.BatchNorm2d(6)
    x = torch.randn(12, 6, 5, 4)
    dy = torch.randn_like(x)
    xa, xb = x.clone().requires_grad_(), x.clone().requires_grad_()
    a(xa).backward(dy)
    torch.cat([b(c) for c in xb.split(4)]).backward(dy)
    torch.testing.assert_close(xa.grad, xb.grad, **BITS)
    torch.testing.assert_close(a.weight.grad, b.weight.grad)


def test_a_batch_that_does_not_divide_leaves_a_shorter_chunk():
    a, b = batchfree.BatchNorm2d(6, normalization_batch=4), nn.BatchNorm2d(6)
    x = torch.randn(10, 6, 5, 4)
    torch.testing.assert_close(a(x), torch.cat([b(x[:4]), b(x[4:8]), b(x[8:])]), **BITS)


def test_samples_of_other_chunks_do_not_matter_in_training():
    bn = batchfree.BatchNorm2d(6, normalization_batch=2)
    x = torch.randn(6, 6, 5, 4)
    y = bn(x)
    x[2:] = 100.0
    torch.testing.assert_close(bn(x)[:2], y[:2], **BITS)


@pytest.mark.parametrize("kind", ["bn", "frozen_bn", "sync_bn", "none"])
def test_activation_and_residual_come_after_the_norm(kind):
    layer = batchfree.norm_layer(kind)(6, activation="relu").eval()
    plain = batchfree.norm_layer(kind)(6).eval()
    x, residual = torch.randn(2, 4, 6, 3, 3)
    torch.testing.assert_close(layer(x, residual), torch.relu(plain(x) + residual), **BITS)


def test_without_running_statistics():
    bn = batchfree.BatchNorm2d(6, track_running_stats=False, normalization_batch=2)
    assert bn(torch.randn(4, 6, 3, 3)).shape == (4, 6, 3, 3)
    assert bn.running_mean is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: batchfree.BatchNorm2d(6, normalization_batch=0), "normalization_batch .*got 0"),
        (lambda: batchfree.BatchNorm2d(6, normalization_batch=2.0), "got 2.0"),
        (lambda: batchfree.BatchNorm2d(6, running_statistics="mean"), "'rank0', 'average'"),
        (lambda: batchfree.BatchNorm2d(6)(torch.ones(2, 6)), r"4-D inputs, got shape \(2, 6\)"),
        (lambda: batchfree.BatchNorm2d(6, normalization_batch=True), "got True"),
        (lambda: batchfree.BatchNorm2d(6)(torch.ones(2, 5, 3, 3)), r"6 channels.*\(2, 5, 3, 3\)"),
        (lambda: batchfree.FrozenBatchNorm(6)(torch.ones(2, 5, 3)), r"6 channels.*\(2, 5, 3\)"),
        (
            lambda: batchfree.BatchNorm2d(6)(
                torch.ones(2, 6, 3, 3), residual=torch.ones(1, 6, 3, 3)
            ),
            r"residual must have x's shape",
        ),
        (
            lambda: batchfree.BatchNorm1d(6, normalization_batch=1)(torch.ones(2, 6)),
            "more than 1 value per channel",
        ),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_frozen_loads_batch_norm_state_and_never_moves():
    bn = nn.BatchNorm2d(6)
    for _ in range(3):
        bn(torch.randn(8, 6, 3, 3) * 3 + 1)
    frozen = batchfree.FrozenBatchNorm(6)
    assert frozen.load_state_dict(bn.state_dict()) == ([], [])
    before = state(frozen)
    x = torch.randn(8, 6, 3, 3)
    torch.testing.assert_close(frozen.train()(x), bn.eval()(x))
    assert list(frozen.parameters()) == []
    for key, value in state(frozen).items():
        torch.testing.assert_close(value, before[key], **BITS)


def _net(norm):
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4))


def _ddp_worker(rank, folder):
    """Trains with and without DDP's broadcast of rank 0's buffers."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    x = torch.load(f"{folder}/x.pt", weights_only=True)
    results = {}
    for mode in ("rank0", "average"):
        net = nn.parallel.DistributedDataParallel(
            _net(nn.BatchNorm2d(6)), broadcast_buffers=mode == "rank0"
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        outputs = []
        for batch in x:
            out = net(batch.chunk(2)[rank])
            outputs.append(out.detach())
            optimizer.zero_grad()
            out.square().mean().backward()
            optimizer.step()
        results[mode] = outputs, net.module.state_dict()
    torch.save(results, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    """The batches, and what each of two real gloo workers computed on them."""
    folder = tmp_path_factory.mktemp("ddp")
    x = torch.randn(4, 8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.save(x, folder / "x.pt")
    mp.start_processes(_ddp_worker, (str(folder),), nprocs=2, start_method="spawn")
    return x, [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["rank0", "average"])
def test_equals_two_real_ddp_workers(ddp, mode):
    x, workers = ddp
    outputs, states = zip(*(worker[mode] for worker in workers), strict=True)
    net = _net(batchfree.BatchNorm2d(6, normalization_batch=4, running_statistics=mode))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    rounding = dict(rtol=1e-5, atol=1e-6)  # of the gradients' all-reduce
    for step, batch in enumerate(x):
        out = net(batch)
        torch.testing.assert_close(out.detach(), torch.cat([o[step] for o in outputs]), **rounding)
        optimizer.zero_grad()
        out.square().mean().backward()
        optimizer.step()
    for key, mine in net.state_dict().items():
        theirs = states[0][key]
        if mode == "average" and "running" in key:
            assert not torch.equal(states[0][key], states[1][key])
            theirs = (states[0][key] + states[1][key]) / 2
        torch.testing.assert_close(mine, theirs, **rounding)
