"""Parts of `benchmarks.gpu`; they need torch, numpy, pyarrow and Pillow only."""
