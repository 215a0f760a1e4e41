"""Networks of other code bases and tools, as genotypes or graphs, and weights."""
