"""`python -m snnir`, which torchrun starts as `torchrun -m snnir`."""

from snnir.cli import main

main()
