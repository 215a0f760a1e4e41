"""A static page that classifies drawn and picked images in the browser, by onnxruntime-web."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from snnir import __version__
from snnir.analysis.page import html_pages
from snnir.errors import SnnirError
from snnir.export.onnx import Form
from snnir.files import writable_folder, write_whole
from snnir.genotype import Genotype
from snnir.genotype.ast import Classify

if TYPE_CHECKING:
    from snnir.compiler import Compiled
    from snnir.deployment import Target

NPM_INSTALL = "npm install --prefix . onnxruntime-web@1.30.0"
"""What puts the release that the page is tested with beside it."""
MAX_EXAMPLES = 10


def refuse_pageless(genotype: Genotype, target: Target, form: Form) -> None:
    """Raise SnnirError unless a page can show the network: one image in, classes out, as ONNX, all
    at once."""
    if target != "onnx":
        raise SnnirError(f"found target '{target}', expected 'onnx' for a web page")
    kinds = [f"{i.kind}[{', '.join(map(str, i.shape))}]" for i in genotype.inputs]
    first = genotype.inputs[0]
    if len(kinds) != 1 or first.kind != "frame" or first.shape[0] not in (1, 3):
        raise SnnirError(
            f"network '{genotype.name}': found input {' and '.join(kinds)}, expected one "
            "frame[1, H, W] or frame[3, H, W] for a web page: an image"
        )
    if not isinstance(genotype.head.task, Classify):
        raise SnnirError(f"network '{genotype.name}': found no classes, expected them for a page")
    if form != "sequence":
        raise SnnirError(f"found {form} form, expected sequence form for a web page")


def write_web_page(
    folder: str | Path,
    compiled: Compiled,
    *,
    examples: np.ndarray | None = None,
    classes: Sequence[str] = (),
) -> Path:
    """Write index.html and network.onnx; onnxruntime-web comes from npm, by the command that the
    page and `NPM_INSTALL` say.

    The page offers the first of `examples`, [N, C, H, W] in [0, 1], and names `classes`, by number
    where no names are given.

    Raises:
        SnnirError: a network that a page cannot show, without a proof, or a folder that cannot be
            written to.
    """
    genotype, report = compiled.genotype, compiled.report
    refuse_pageless(genotype, report["target"], report["parity"]["form"])
    if not compiled.passed:
        raise SnnirError(f"network '{genotype.name}': found no proof, expected one for a web page")
    (image,) = genotype.inputs
    output = compiled.graph.outputs[0].path
    (count,) = compiled.graph.shape(output)
    pixels = np.zeros((0, *image.shape)) if examples is None else examples[:MAX_EXAMPLES]
    page = html_pages("snnir.export").get_template("web.html.j2").render(
        network={
            "input": image.name,
            "shape": image.shape,
            "output": output,
            "classes": list(classes) or list(map(str, range(count))),
            "examples": [
                base64.b64encode(x.tobytes()).decode()
                for x in np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
            ],
        },
        name=genotype.name,
        report=report,
        version=__version__,
        npm_install=NPM_INSTALL,
    )  # fmt: skip
    folder = writable_folder(folder)
    write_whole(folder / "network.onnx", compiled.model.SerializeToString())
    write_whole(folder / "index.html", page)
    return folder
