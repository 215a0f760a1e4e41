"""Networks of other code bases, as genotypes and weights."""
