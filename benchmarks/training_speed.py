"""A training step of SpikeDHS-CLA beside SpikingJelly 2.0's own `SpikeDHS` and beside the bare
convolutions: time and memory.

    pip install --no-deps spikingjelly==2.0.0 && pip install h5py loguru
    python benchmarks/training_speed.py                 # C = 16, batch 8 and C = 32, batch 2
    python benchmarks/training_speed.py --case 16 8 --rounds 5 --no-memory

Both networks have the auxiliary head, T = 6, 32x32, the reset detached (as in SpikingJelly's port)
and one fused SGD with momentum and weight decay. A step is forward, loss, backward, update, and the
peer's reset. `bf16` is autocast. `convolutions` is the forward and backward of our graph's
convolutions alone, each on spikes and gradients of its shape: what a step cannot go below.

Every side has a process of its own, with freed memory kept (`snnir.lower.memory`; the peer gains
nothing by it).

- Time: the sides take turns, a step each. A time is the median over the rounds, a ratio the median
  of the rounds' ratios.
- Memory, in fp32, over what is there between steps (parameters, their gradients, momentum):
  `tensors`, the peak of what torch has allocated, which a run repeats to the byte and the goal is
  for; and `resident`, the peak resident set, with the fragments that malloc leaves and what
  convolutions allocate themselves. The memory that was free before is given back first.

Exits 1 when a number is short of its goal.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import snnir
from snnir import models
from snnir.data.vision import torchvision_module
from snnir.genotype import parse, retarget
from snnir.ir.nodes import Conv
from snnir.lower import SpikingModule
from snnir.lower.memory import keep_freed_memory
from snnir.source import Source

STEPS, CLASSES = 6, 10
SIDES = ("snnir", "snnir bf16", "peer", "peer bf16", "convolutions", "convolutions bf16")

Step = Callable[[int], None]
"""A step on a batch of so many images."""


class Goals(NamedTuple):
    """Least speed over the peer in fp32, and in bf16 over its fp32; most time over the bare
    convolutions and memory over the peer's."""

    speed: float
    speed_bf16: float
    convolutions: float
    memory: float


GOALS = {(16, 8): Goals(1.5, 2.2, 1.25, 0.65), (32, 2): Goals(1.4, 2.2, 1.25, 0.65)}
"""By case: (C, batch)."""


def our_module(channels: int) -> SpikingModule:
    text = models.source("spikedhs_cla").text
    detached = text.replace("surrogate=", "detach_reset=true, surrogate=")
    genotype = parse(Source("spikedhs_cla.snn", detached))
    return snnir.load(retarget(genotype, [f"channels={channels}"]))


def peer_module(channels: int) -> nn.Module:
    """SpikingJelly's SpikeDHS, multi-step; its hard-coded widths (C = 48) replaced."""
    torchvision_module("transforms")  # SpikingJelly imports torchvision
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
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_(source != "image")
        weight = net.stacked(node.owners, "weight").detach().to(dtype).requires_grad_()
        bias = torch.zeros(node.out_channels, dtype=dtype, requires_grad=True)
        gradient = torch.randn(n, *graph.shape(node.path)).to(dtype)
        jobs.append((node, x, weight, bias, gradient.contiguous(memory_format=torch.channels_last)))

    def step(_: int) -> None:
        for node, x, weight, bias, gradient in jobs:
            y = F.conv2d(x, weight, bias, node.stride, node.padding, 1, node.groups)
            y.backward(gradient)
            x.grad = weight.grad = bias.grad = None

    return step


def make_step(side: str, channels: int, batch: int) -> Step:
    keep_freed_memory()
    torch.manual_seed(0)
    name, _, precision = side.partition(" ")
    bf16 = precision == "bf16"
    if name == "snnir":
        return training_step(our_module(channels), bf16=bf16)
    if name == "convolutions":
        return convolutions_step(our_module(channels), batch, bf16=bf16)
    net = peer_module(channels)
    from spikingjelly.activation_based.functional import reset_net

    return training_step(net, bf16=bf16, reset=reset_net)


# --- time -----------------------------------------------------------------------------------


def times(channels: int, batch: int, rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds of a step by side. They take turns, so that what the machine does meanwhile falls on
    all alike; two rounds more come first and are not counted."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for side in SIDES:
        pipes[side], theirs = context.Pipe()
        arguments = (theirs, side, channels, batch, threads)
        context.Process(target=_serve_steps, args=arguments, daemon=True).start()
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds + 2):
        for side, pipe in pipes.items():
            pipe.send("step")
            seconds[side].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send("stop")
    return {side: taken[2:] for side, taken in seconds.items()}


def _serve_steps(pipe: Connection, side: str, channels: int, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    step = make_step(side, channels, batch)
    while pipe.recv() == "step":
        start = time.perf_counter()
        step(batch)
        pipe.send(time.perf_counter() - start)


# --- memory ---------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Bytes at the peak of a step over those before it."""

    tensors: int
    resident: int


def memory(side: str, channels: int, batch: int, threads: int) -> Memory:
    """What a step takes, each figure from a process of its own."""
    found = []
    for measure in (_tensors, _resident):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(measure, (side, channels, batch, threads)))
    return Memory(*found)


def _tensors(side: str, channels: int, batch: int, threads: int) -> int:
    torch.set_num_threads(threads)
    step = make_step(side, channels, batch)
    with torch.profiler.profile(profile_memory=True) as profile:
        step(1)  # makes gradients and momentum
        with torch.profiler.record_function("measured"):
            step(batch)
    events = sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    live, before, peak = 0, 0, 0
    for event in events:
        if event.name() == "measured":
            before = peak = live
        elif event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak - before


def _resident(side: str, channels: int, batch: int, threads: int) -> int:
    torch.set_num_threads(threads)
    step = make_step(side, channels, batch)
    step(1)  # makes gradients, momentum, and what the libraries keep
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    step(batch)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


# --- report ---------------------------------------------------------------------------------


def measure(case: tuple[int, int], options: Namespace) -> bool:
    """Print one case; returns whether it met its goals."""
    goals = GOALS[case]
    seconds = times(*case, options.rounds, options.threads)
    print(f"\nC = {case[0]}, batch {case[1]}, T = {STEPS}, {options.threads} threads")
    for side, taken in seconds.items():
        print(f"  {side:18} {median(taken):.3f} s a step ({min(taken):.3f} to {max(taken):.3f})")

    def ratio(a: str, b: str) -> float:
        return median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

    met = [
        _reached("peer / snnir", ratio("peer", "snnir"), least=goals.speed),
        _reached("peer / snnir bf16", ratio("peer", "snnir bf16"), least=goals.speed_bf16),
        _reached("snnir / convolutions", ratio("snnir", "convolutions"), most=goals.convolutions),
    ]
    if not options.no_memory:
        ours, theirs = (memory(side, *case, options.threads) for side in ("snnir", "peer"))
        for name, mine, yours in zip(Memory._fields, ours, theirs, strict=True):
            print(f"  {name}: snnir {mine / 2**20:.0f} MiB, peer {yours / 2**20:.0f} MiB")
        print(f"  resident snnir / peer  {ours.resident / theirs.resident:.2f}")
        share = ours.tensors / theirs.tensors
        met.append(_reached("tensors snnir / peer", share, most=goals.memory))
    return all(met)


def _reached(name: str, found: float, *, least: float = 0.0, most: float = float("inf")) -> bool:
    met = least <= found <= most
    bound = f"at least {least}" if least else f"at most {most}"
    print(f"  {name:22} {found:.2f} ({bound}{'' if met else ': NOT MET'})")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", nargs=2, type=int, metavar=("C", "BATCH"), help="only this one")
    parser.add_argument("--no-memory", action="store_true", help="time alone")
    options = parser.parse_args()
    cases = [tuple(options.case)] if options.case else list(GOALS)
    unknown = [case for case in cases if case not in GOALS]
    if unknown:
        parser.error(f"found case {unknown[0]}, expected one of {', '.join(map(str, GOALS))}")
    met = [measure(case, options) for case in cases]  # all, also after one that falls short
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
