"""The measurements of docs/benchmarks.md: `./dev bench`. One module per group; nothing here is a test."""
