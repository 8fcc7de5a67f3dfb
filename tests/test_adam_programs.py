"""Adam in programs: loss scaling, compilers, averaged models, and several processes."""

import traceback

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.adam_models import (
    PAIRS,
    TOLERANCES,
    Twins,
    each_class,
    loss_of,
    mlp,
    parameters,
    snapshot,
)


def backward_and_step(optimizer, model, i):
    loss_of(model, i).backward()
    optimizer.step()


def trained(kind, device="cpu", step=backward_and_step, steps=6, **options):
    """The parameters and states of a small model after some steps of training."""
    model = mlp(device=device)
    optimizer = kind(model.parameters(), lr=0.05, **options)
    for i in range(steps):
        optimizer.zero_grad()
        step(optimizer, model, i)
    return snapshot(optimizer)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, **TOLERANCES[torch.float64])


class Scaled:
    """A step with a scaled loss; at step 2 a gradient overflows."""

    def __init__(self, device, clip=None, unscale=False):
        self.scaler = torch.amp.GradScaler(device, init_scale=2.0**10, growth_interval=2)
        self.clip, self.unscale = clip, unscale
        self.scales = []

    def __call__(self, optimizer, model, i):
        self.scaler.scale(loss_of(model, i)).backward()
        if i == 2:
            model[0].weight.grad[0, 0] = torch.inf
        if self.unscale:
            self.scaler.unscale_(optimizer)
        if self.clip:
            clip_grad_norm_(model.parameters(), self.clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        self.scales.append(self.scaler.get_scale())


@each_class
@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler(ours, torchs, unscale, device):
    our, their = Scaled(device, unscale=unscale), Scaled(device)
    assert_close(trained(ours, device, our), trained(torchs, device, their))
    assert our.scales == their.scales
    assert len(set(our.scales)) > 1


@pytest.mark.parametrize("unscale", [False, True])
def test_max_grad_norm_is_that_of_unscaled_gradients(unscale, device):
    our, their = Scaled(device, unscale=unscale), Scaled(device, clip=0.1, unscale=True)
    actual = trained(PAIRS[1][0], device, our, max_grad_norm=0.1)
    assert_close(actual, trained(PAIRS[1][1], device, their))


@each_class
@pytest.mark.parametrize("found_inf", [0.0, 1.0])
def test_grad_scale_and_found_inf_are_those_of_torchs_fused_step(ours, torchs, found_inf, device):
    twins = Twins(ours, torchs, parameters(device=device), loop={"fused": True}, amsgrad=True)
    twins.run(2, rtol=1e-12, atol=1e-14)
    for optimizer in twins.both:
        optimizer.grad_scale = torch.tensor(8.0, device=device)
        optimizer.found_inf = torch.tensor(found_inf, device=device)
    twins.run(2, rtol=1e-12, atol=1e-14)
    for optimizer in twins.both:
        del optimizer.grad_scale, optimizer.found_inf
    twins.run(2, rtol=1e-12, atol=1e-14)


@pytest.mark.once
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_compiled_train_step(backend):
    torch._dynamo.reset()
    results = []
    for compiler in (lambda step: step, torch.compile(backend=backend, dynamic=False)):
        model = mlp()
        optimizer = PAIRS[1][0](model.parameters(), lr=0.05)

        def train(i, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = loss_of(model, i)
            loss.backward()
            optimizer.step()
            return loss.detach()

        step = compiler(train)
        losses = [step(i) for i in range(4)]
        results.append([losses, snapshot(optimizer)])
    assert_close(*results)


@each_class
def test_averaged_model(ours, torchs, device):
    """torch's average of our parameters, torch's of torch's, and our own are the same."""
    results = []
    for kind, options in ((ours, {"ema_decay": 0.9}), (torchs, {})):
        model = mlp(device=device)
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        averaged.update_parameters(model)  # starts from the initial values
        optimizer = kind(model.parameters(), lr=0.05, **options)
        for i in range(5):
            optimizer.zero_grad()
            backward_and_step(optimizer, model, i)
            averaged.update_parameters(model)
        results.append([p.detach() for p in averaged.module.parameters()])
        if options:
            results.append(optimizer.ema_parameters())
    for result in results[:2]:
        assert_close(result, results[2])


# Two processes with gloo, started once: each function trains a model that is spread over both.


def whole(x):
    return x.full_tensor() if isinstance(x, DTensor) else x


def train_spread(model, optimizer, max_norm=None):
    """The parameters after some steps, whole again; each process has data of its own."""
    for i in range(4):
        optimizer.zero_grad()
        loss_of(model, 2 * i + dist.get_rank()).backward()
        if max_norm:
            clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
    return [whole(p.detach()) for p in model.parameters()]


def fsdp2(kind, max_norm=None, **options):
    model = mlp()
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    return train_spread(model, kind(model.parameters(), lr=0.05, **options), max_norm)


def dtensor(kind, max_norm=None, overflow=None, without=None, **options):
    """Sharded along either axis, unevenly too, and replicated; the gradients are random."""
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(3)
    params = [
        nn.Parameter(distribute_tensor(p.detach(), mesh, [placement]))
        for p in parameters((6, 5), (7, 4), (1,))
        for placement in (Shard(0), Shard(p.dim() - 1), Replicate())
    ]
    optimizer = kind(params, lr=0.05, **options)
    for i in range(4):
        for p in params:
            gradient = torch.randn(p.shape, dtype=p.dtype)
            p.grad = distribute_tensor(gradient, mesh, p.placements)
        if i == overflow and dist.get_rank() == 0:  # which the other process cannot see
            params[0].grad.to_local().fill_(torch.inf)
        if max_norm:
            clip_grad_norm_(params, max_norm)
        if i != without:
            optimizer.step()
    return [whole(p.detach()) for p in params]


def zero_redundancy(kind, max_norm=None, **options):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # here, for its warnings

    model = DistributedDataParallel(mlp())
    spread = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=kind, lr=0.05, **options)
    return train_spread(model, spread, max_norm)


def state_dict_of_shards(kind, max_norm=None, **options):
    """Through torch.distributed.checkpoint's state dicts, in mid-run."""
    model = mlp()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = kind(model.parameters(), lr=0.05, **options)
    train_spread(model, optimizer)
    saved = get_optimizer_state_dict(model, optimizer)
    other = kind(model.parameters(), lr=0.05, **options)
    set_optimizer_state_dict(model, other, saved)
    return train_spread(model, other)


SPREAD = {  # what trains, what only ours is told, what only torch's is told
    "FSDP2": (fsdp2, {}, {}),
    "DTensor": (dtensor, {}, {}),
    "ZeroRedundancyOptimizer": (zero_redundancy, {}, {}),
    "FSDP2 state dict": (state_dict_of_shards, {}, {}),
    "FSDP2 clipped": (fsdp2, {"max_grad_norm": 0.1}, {"max_norm": 0.1}),
    "DTensor clipped": (dtensor, {"max_grad_norm": 0.1}, {"max_norm": 0.1}),
    "DTensor skipped": (dtensor, {"skip_nonfinite": True, "overflow": 2}, {"without": 2}),
}


def _in_process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    reports = {}
    for name, (train, our, their) in SPREAD.items():
        try:
            assert_close(train(PAIRS[1][0], **our), train(PAIRS[1][1], foreach=False, **their))
            reports[name] = ""
        except Exception:
            reports[name] = traceback.format_exc()
    torch.save(reports, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What each process says of each function of SPREAD."""
    folder = str(tmp_path_factory.mktemp("gloo"))
    torch.multiprocessing.spawn(_in_process, (folder,), nprocs=2)
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]


@pytest.mark.once
@pytest.mark.parametrize("name", SPREAD)
def test_parameters_spread_over_two_processes(reports, name):
    failures = [x[name] for x in reports if x[name]]
    assert not failures, failures[0]
