"""A training step of SpikeDHS-CLA beside SpikingJelly 2.0's own `SpikeDHS`, and beside the bare
convolutions, interleaved in one run; then the peak memory over the model.

    pip install --no-deps spikingjelly==2.0.0 && pip install h5py loguru scipy tqdm requests
    python benchmarks/training_speed.py              # C = 16, batch 8 and C = 32, batch 2

Both sides have the auxiliary head, T = 6, 32x32, the reset detached (SpikingJelly's port detaches
it), SGD with momentum. A time is the median over the rounds, a ratio the median of the rounds'
ratios. Memory is the peak resident set of one step over that before it, each side in a process of
its own. Exits 1 when a number is short of its goal.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import snnir
from snnir import models
from snnir.genotype import parse
from snnir.ir.nodes import Conv
from snnir.lower import SpikingModule
from snnir.source import Source

STEPS, CLASSES = 6, 10
SIDES = ("snnir", "snnir bf16", "peer", "peer bf16", "convolutions", "convolutions bf16")
GOALS = {(16, 8): (1.5, 2.2, 1.25, 0.65), (32, 2): (1.4, 2.2, 1.25, 0.65)}
"""By (C, batch): speed over the peer in fp32, in bf16 over its fp32; time over the bare
convolutions; memory over the peer's."""

Step = Callable[[int], None]
"""A step on a batch of so many images."""


def our_module(channels: int) -> SpikingModule:
    text = models.source("spikedhs_cla").text
    text = text.replace("conv3x3(144)", f"conv3x3({3 * channels})")
    text = text.replace("channels=48", f"channels={channels}")
    text = text.replace("surrogate=", "detach_reset=true, surrogate=")
    return snnir.load(parse(Source("spikedhs_cla.snn", text)))


def peer_module(channels: int) -> nn.Module:
    """SpikingJelly's SpikeDHS, multi-step; its hard-coded widths (C = 48) replaced."""
    from snnir.data.vision import torchvision_module

    torchvision_module("transforms")
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.model import spike_dhs

    arguments = Namespace(
        fea_step=3, fea_num_layers=8, fea_block_multiplier=3, fea_filter_multiplier=channels
    )
    wide = spike_dhs.AuxiliaryHeadCIFAR
    spike_dhs.AuxiliaryHeadCIFAR = lambda _, __: wide(12 * channels, CLASSES)
    net = spike_dhs.SpikeDHS(3, arguments)
    spike_dhs.AuxiliaryHeadCIFAR = wide
    net.classifier = spike_dhs.SpikingLinear(12 * channels, CLASSES, spiking=False)
    functional.set_step_mode(net, "m")
    return net


def training_step(
    net: nn.Module, *, bf16: bool, reset: Callable[[nn.Module], None] | None = None
) -> Step:
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4, fused=True
    )

    def step(batch: int) -> None:
        x, target = torch.rand(batch, 3, 32, 32), torch.randint(0, CLASSES, (batch,))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits, auxiliary = net(x)
        auxiliary = auxiliary[0] if isinstance(auxiliary, list) else auxiliary
        loss = F.cross_entropy(logits.float(), target)
        loss = loss + 0.4 * F.cross_entropy(auxiliary.float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if reset is not None:
            reset(net)

    return step


def convolutions_step(net: SpikingModule, batch: int, *, bf16: bool) -> Step:
    """Forward and backward of the graph's convolutions, each alone on values of its shape."""
    graph = net.graph
    dtype = torch.bfloat16 if bf16 else torch.float32
    jobs: list[tuple[Conv, Tensor, Tensor, Tensor, Tensor]] = []
    for node in graph.of_type(Conv):
        source = graph.inputs(node.path)[0]
        n = batch * (STEPS if graph.type(source).time == "stepped" else 1)
        x = (torch.rand(n, *graph.shape(source)) < 0.2).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = net.stacked(node.owners, "weight").detach().to(dtype)
        weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
        bias = torch.zeros(node.out_channels, dtype=dtype, requires_grad=True)
        gradient = torch.randn(n, *graph.shape(node.path)).to(dtype)
        x.requires_grad_(source != "image")
        jobs.append((node, x, weight, bias, gradient.contiguous(memory_format=torch.channels_last)))

    def step(_: int) -> None:
        for node, x, weight, bias, gradient in jobs:
            F.conv2d(x, weight, bias, node.stride, node.padding, 1, node.groups).backward(gradient)
            x.grad = weight.grad = bias.grad = None

    return step


def make_step(side: str, channels: int, batch: int) -> Step:
    import os

    if not side.startswith("peer") or "PM" in os.environ:
        import ctypes

        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 32 << 20), libc.mallopt(-1, 2**31 - 1)
    torch.manual_seed(0)
    bf16 = side.endswith("bf16")
    if side.startswith("peer"):
        from snnir.data.vision import torchvision_module

        torchvision_module("transforms")
        from spikingjelly.activation_based.functional import reset_net

        return training_step(peer_module(channels), bf16=bf16, reset=reset_net)
    if side.startswith("conv"):
        return convolutions_step(our_module(channels), batch, bf16=bf16)
    return training_step(our_module(channels), bf16=bf16)


def interleaved(
    channels: int, batch: int, rounds: int, sides: list[str], threads: int
) -> dict[str, list[float]]:
    """Seconds of a step by side. Each side has a process of its own; they take turns, a step each,
    so that what the machine does meanwhile falls on all alike."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for side in sides:
        ours, theirs = context.Pipe()
        arguments = (theirs, side, channels, batch, threads)
        context.Process(target=_serve_steps, args=arguments, daemon=True).start()
        pipes[side] = ours
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(-2, rounds):
        for side, pipe in pipes.items():
            pipe.send("step")
            taken = pipe.recv()
            if number >= 0:
                seconds[side].append(taken)
    for pipe in pipes.values():
        pipe.send("stop")
    return seconds


def _serve_steps(pipe: Connection, side: str, channels: int, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    step = make_step(side, channels, batch)
    while pipe.recv() == "step":
        start = time.perf_counter()
        step(batch)
        pipe.send(time.perf_counter() - start)


def peak_memory(side: str, channels: int, batch: int) -> int:
    """Bytes of the peak of one step over the model, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (side, channels, batch))


def _peak_memory(side: str, channels: int, batch: int) -> int:
    step = make_step(side, channels, batch)
    step(1)  # the model, its gradients and momentum, and what the libraries keep
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    step(batch)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs=2, type=int, metavar=("C", "BATCH"))
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--sides", nargs="+", default=list(SIDES))
    options = parser.parse_args()
    short = False
    for (channels, batch), goals in GOALS.items():
        if options.only and tuple(options.only) != (channels, batch):
            continue
        seconds = interleaved(channels, batch, options.rounds, options.sides, options.threads)
        print(f"\nC = {channels}, batch {batch}, T = {STEPS}, {options.threads} threads")
        for side, times in seconds.items():
            spread = f"{min(times):.3f} to {max(times):.3f}"
            print(f"  {side:18} {statistics.median(times):.3f} s a step ({spread})")

        def ratio(a: str, b: str, seconds: dict[str, list[float]] = seconds) -> float:
            return statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

        rows = []
        if {"peer", "snnir", "snnir bf16", "convolutions"} <= set(seconds):
            rows = [
                ("peer / snnir", ratio("peer", "snnir"), goals[0], 1),
                ("peer / snnir bf16", ratio("peer", "snnir bf16"), goals[1], 1),
                ("snnir / convolutions", ratio("snnir", "convolutions"), goals[2], -1),
            ]
        if not options.no_memory:
            ours, theirs = (peak_memory(side, channels, batch) for side in ("snnir", "peer"))
            print(
                f"  peak memory over the model: {ours / 2**20:.0f} MiB, peer {theirs / 2**20:.0f}"
            )
            rows.append(("memory snnir / peer", ours / theirs, goals[3], -1))
        for name, found, goal, sign in rows:
            met = found >= goal if sign > 0 else found <= goal
            short |= not met
            bound = "at least" if sign > 0 else "at most"
            print(f"  {name:22} {found:.2f} ({bound} {goal}{'' if met else ': NOT MET'})")
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
