"""snnir: genotypes of spiking networks compiled to PyTorch and ONNX, with proofs."""

__version__ = "0.1.0"
