"""Parts of `benchmarks.gpu`; they need torch and numpy only."""
