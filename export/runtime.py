"""Compiled models in onnxruntime: whole sequences, or streams step by step. Needs no torch."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from snnir.errors import SnnirError

FORMS = ("sequence", "step")

State = dict[str, np.ndarray]
"""Arrays [N, …] by input name: `<path>.v`, of ALIF also `<path>.a`."""


class Runtime:
    """A model that `snnir compile` wrote, in onnxruntime on the CPU.

    `run` takes whole sequences; `step` takes a stream step by step (step form) and keeps its state.
    Threads may share a Runtime: `run` keeps nothing, and steps take turns. A stream needs its own.
    """

    def __init__(self, model: str | Path | bytes, *, threads: int = 0, name: str = "<model>"):
        """Read a model of either form, a file or what is in one, for which `name` stands in errors.
        One call computes on `threads` threads (0: one per core).

        Raises:
            SnnirError: an unreadable file, or a model that snnir did not compile.
        """
        self._name = name if isinstance(model, bytes) else str(model)
        self._session = _read(model, self._name, threads)
        metadata = self._session.get_modelmeta().custom_metadata_map
        outputs, given = self._session.get_outputs(), self._session.get_inputs()
        steps = metadata.get("steps", "")
        ours = metadata.get("form") in FORMS and re.fullmatch("[1-9][0-9]{0,5}", steps)
        if not ours or any(isinstance(n, str) for i in given for n in i.shape[2:]):
            found = "found a model of another program, expected one of snnir's"
            raise SnnirError(f"{self._name}: {found}")
        self.form: str = metadata["form"]
        """"sequence" or "step"."""
        self.steps = int(steps)
        """T of a whole sequence."""
        made = {output.name for output in outputs}
        self._gives_logits = len(outputs[0].shape) == 2
        self._inputs = [i for i in given if f"{i.name}.next" not in made]
        self._states = [i for i in given if f"{i.name}.next" in made]
        self._outputs = [outputs[0].name, *(f"{i.name}.next" for i in self._states)]
        self._lock = threading.Lock()
        self._state: State = {}
        self._samples = 0

    def run(self, *inputs: np.ndarray) -> np.ndarray:
        """Logits [N, classes], or disparity [T, N, H, W], of a whole sequence from rest; any N.

        Inputs are float32, in the genotype's order: a frame [N, C, H, W], events [T, N, C, H, W]. A
        step model runs once per step. It takes either shape, [N, C, H, W] being shown T times, and
        any T. What `step` keeps stays as it is.

        Raises:
            SnnirError: inputs of another number, shape or type.
        """
        sizes = self._check(inputs, whole=True)
        if self.form == "sequence":
            return self._call(inputs, {})[0]
        state = self._at_rest(sizes["N"])
        outputs = []
        for t in range(sizes.get("T", self.steps)):
            now = [x[t] if x.ndim == 5 else x for x in inputs]
            output, state = self._call(now, state)
            outputs.append(output)
        return np.mean(outputs, axis=0) if self._gives_logits else np.stack(outputs)

    def step(self, *inputs: np.ndarray) -> np.ndarray:
        """Logits [N, classes], or disparity [N, H, W], of one more step; inputs [N, C, H, W].

        The logits of a sequence are the mean over its steps. The first step, one after `reset`,
        and one of another N than the last, which cannot be the same stream, start from rest.

        Raises:
            SnnirError: a model in sequence form; inputs of another number, shape or type.
        """
        if self.form != "step":
            raise SnnirError(
                f"{self._name}: found a model in {self.form} form, expected step form for single "
                "steps: snnir compile --form step"
            )
        samples = self._check(inputs, whole=False)["N"]
        with self._lock:
            if samples != self._samples:
                self._state, self._samples = self._at_rest(samples), samples
            output, self._state = self._call(inputs, self._state)
        return output

    def reset(self) -> None:
        """Forget the state: the next step starts from rest."""
        with self._lock:
            self._state, self._samples = {}, 0

    def _at_rest(self, samples: int) -> State:
        return {s.name: np.zeros((samples, *s.shape[1:]), np.float32) for s in self._states}

    def _call(self, inputs: Sequence[np.ndarray], state: State) -> tuple[np.ndarray, State]:
        named = {info.name: x for info, x in zip(self._inputs, inputs, strict=True)}
        output, *after = self._compute(named | state)
        return output, dict(zip((s.name for s in self._states), after, strict=True))

    def _compute(self, feed: State) -> list[np.ndarray]:
        """The output and what the states are next."""
        return self._run(self._outputs, feed)

    def _run(self, names: Sequence[str], feed: State) -> list[np.ndarray]:
        try:
            return self._session.run(names, feed)
        except Exception as error:  # of many kinds; the inputs were checked, so it is the model
            raise SnnirError(f"{self._name}: onnxruntime cannot run it: {error}") from None

    def _check(self, inputs: Sequence[np.ndarray], *, whole: bool) -> dict[str, int]:
        """The sizes that inputs may choose, N and perhaps T; they must agree about them."""
        if len(inputs) != len(self._inputs):
            names = ", ".join(info.name for info in self._inputs)
            raise SnnirError(
                f"{self._name}: found {len(inputs)} inputs, expected {len(self._inputs)}: {names}"
            )
        sizes: dict[str, int] = {}
        for info, x in zip(self._inputs, inputs, strict=True):
            found = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
            if found != np.float32:
                raise SnnirError(
                    f"{self._name}: input '{info.name}': found {found}, expected a float32 array"
                )
            shapes = [info.shape]
            if whole and self.form == "step":
                shapes.append(["T", *info.shape])
            expected = [[sizes.get(size, size) for size in shape] for shape in shapes]
            fitting = [shape for shape in expected if _fits(x.shape, shape)]
            if not fitting:
                steps = len(info.shape) == 5 and x.ndim == 5 and x.shape[2:] == (*info.shape[2:],)
                raise SnnirError(
                    f"{self._name}: input '{info.name}': found shape {list(x.shape)}, expected "
                    + " or ".join(f"[{', '.join(map(str, shape))}]" for shape in expected)
                    + (" (step form takes any number of steps)" if steps else "")
                )
            sizes |= {s: n for s, n in zip(fitting[0], x.shape, strict=True) if isinstance(s, str)}
        return sizes


def session(model: bytes, *, threads: int = 0) -> onnxruntime.InferenceSession:
    """An onnxruntime CPU session that does not spin when several share a process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _read(model: str | Path | bytes, name: str, threads: int) -> onnxruntime.InferenceSession:
    try:
        content = model if isinstance(model, bytes) else Path(model).read_bytes()
        return session(content, threads=threads)
    except OSError as error:
        raise SnnirError(f"{name}: cannot be read: {error.strerror}") from None
    except Exception as error:  # onnxruntime raises many kinds for a file that is not a model
        raise SnnirError(f"{name}: found no readable ONNX model: {error}") from None


def _fits(shape: Sequence[int], expected: Sequence[int | str]) -> bool:
    """Whether sizes are the expected ones, or at least 1 where any will do."""
    return len(shape) == len(expected) and all(
        n == size or (isinstance(size, str) and n > 0)
        for n, size in zip(shape, expected, strict=True)
    )
