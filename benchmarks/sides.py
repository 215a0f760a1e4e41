"""The sides of a benchmark, each in a process of its own: the time and memory of a step.

A benchmark names its sides and has a module-level `make_step(side, C, batch)`, which every process
calls for itself.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from snnir.ir.nodes import Conv
from snnir.lower import SpikingModule

Case = tuple[int, int]
"""(C, batch)"""

Step = Callable[[int], None]
"""A step on a batch of so many images."""

MakeStep = Callable[[str, int, int], Step]
"""Side, C and batch to the side's step."""

Seconds = dict[str, list[float]]
"""Of a step, by side, one per round."""


def parser(doc: str) -> ArgumentParser:
    """The options that every benchmark of sides has."""
    options = ArgumentParser(description=doc.partition("\n\n")[0])
    options.add_argument("--rounds", type=int, default=12)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--case", nargs=2, type=int, metavar=("C", "BATCH"), help="only this one")
    options.add_argument("--no-memory", action="store_true", help="time alone")
    return options


class Convolutions:
    """A graph's convolutions, each alone on spikes and gradients of its shape."""

    def __init__(self, net: SpikingModule, batch: int, *, bf16: bool):
        graph = net.graph
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.jobs: list[tuple[Conv, Tensor, Tensor, Tensor, Tensor]] = []
        for node in graph.of_type(Conv):
            source = graph.inputs(node.path)[0]
            n = batch * (graph.steps if graph.type(source).time == "stepped" else 1)
            x = (torch.rand(n, *graph.shape(source)) < 0.2).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last).requires_grad_(source != "image")
            weight = net.stacked(node, "weight").detach().to(dtype)
            bias = torch.zeros(node.out_channels, dtype=dtype)
            gradient = torch.randn(n, *graph.shape(node.path)).to(dtype)
            gradient = gradient.contiguous(memory_format=torch.channels_last)
            self.jobs.append((node, x, weight, bias, gradient))

    def run(self, *, weights: bool = True) -> None:
        """Forward and backward of each, to what it reads and, with `weights`, to its weights."""
        for node, x, weight, bias, gradient in self.jobs:
            weight.requires_grad_(weights)
            bias.requires_grad_(weights)
            y = F.conv2d(x, weight, bias, node.stride, node.padding, 1, node.groups)
            if y.requires_grad:
                y.backward(gradient)
            x.grad = weight.grad = bias.grad = None


# --- time -----------------------------------------------------------------------------------


def times(
    make_step: MakeStep, sides: Sequence[str], case: Case, rounds: int, threads: int
) -> Seconds:
    """Seconds of a step by side. They take turns, so that what the machine does meanwhile falls on
    all alike; two rounds more come first and are not counted."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for side in sides:
        pipes[side], theirs = context.Pipe()
        arguments = (theirs, make_step, side, case, threads)
        context.Process(target=_serve_steps, args=arguments, daemon=True).start()
        theirs.close()  # so that a side that fails is an end of file here
    seconds: Seconds = {side: [] for side in sides}
    for _ in range(rounds + 2):
        for side, pipe in pipes.items():
            pipe.send("step")
            seconds[side].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send("stop")
    return {side: taken[2:] for side, taken in seconds.items()}


def _serve_steps(
    pipe: Connection, make_step: MakeStep, side: str, case: Case, threads: int
) -> None:
    torch.set_num_threads(threads)
    step = make_step(side, *case)
    while pipe.recv() == "step":
        start = time.perf_counter()
        step(case[1])
        pipe.send(time.perf_counter() - start)


# --- memory ---------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Bytes at the peak of a step over those before it."""

    tensors: int
    resident: int


def memory(
    make_step: MakeStep, sides: Sequence[str], case: Case, threads: int, *, first: int = 1
) -> dict[str, Memory]:
    """What a step takes by side, each figure from a process of its own. A step on `first` images
    comes before it."""

    def taken(side: str, measure: Callable[..., int]) -> int:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(measure, (make_step, side, case, threads, first))

    return {side: Memory(taken(side, _tensors), taken(side, _resident)) for side in sides}


def _tensors(make_step: MakeStep, side: str, case: Case, threads: int, first: int) -> int:
    torch.set_num_threads(threads)
    step = make_step(side, *case)
    with torch.profiler.profile(profile_memory=True) as profile:
        step(first)  # makes gradients and momentum
        with torch.profiler.record_function("measured"):
            step(case[1])
    events = sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    live, before, peak = 0, 0, 0
    for event in events:
        if event.name() == "measured":
            before = peak = live
        elif event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak - before


def _resident(make_step: MakeStep, side: str, case: Case, threads: int, first: int) -> int:
    torch.set_num_threads(threads)
    step = make_step(side, *case)
    step(first)  # makes gradients, momentum, and what the libraries keep
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    step(case[1])
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


# --- report ---------------------------------------------------------------------------------


def print_times(case: Case, steps: int, threads: int, seconds: Seconds) -> None:
    print(f"\nC = {case[0]}, batch {case[1]}, T = {steps}, {threads} threads")
    for side, taken in seconds.items():
        print(f"  {side:18} {median(taken):.3f} s a step ({min(taken):.3f} to {max(taken):.3f})")


def print_memory(found: dict[str, Memory], *, most: float) -> bool:
    """Print what each side takes, the first as a share of the second; returns whether its tensors
    are at most so much of the second's."""
    for name in Memory._fields:
        taken = (f"{side} {getattr(m, name) / 2**20:.0f} MiB" for side, m in found.items())
        print(f"  {name}: {', '.join(taken)}")
    (ours, mine), (peer, yours), *_ = found.items()
    print_ratio(f"resident {ours} / {peer}", mine.resident / yours.resident)
    return reached(f"tensors {ours} / {peer}", mine.tensors / yours.tensors, most=most)


def ratio(seconds: Seconds, a: str, b: str) -> float:
    """a's time over b's: the median of the rounds' ratios."""
    return median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))


def print_ratio(name: str, found: float, note: str = "") -> None:
    print(f"  {name:22} {found:.2f}{note}")


def reached(name: str, found: float, *, least: float = 0.0, most: float = float("inf")) -> bool:
    """Print a ratio with its goal; returns whether it met it."""
    met = least <= found <= most
    bound = f"at least {least}" if least else f"at most {most}"
    print_ratio(name, found, f" ({bound}{'' if met else ': NOT MET'})")
    return met
